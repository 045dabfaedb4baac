"""`remora run`: an unmodified script, with the remora device there."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

from remora.cli.failure import fail, failures_in_one_line

SIGINT_EXIT = 130


def run(
    script: str = typer.Argument(help="The script, as python would run it"),
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGS", help="What follows belongs to the script")
    ] = None,
    url: str | None = typer.Option(None, help="The executor, such as http://gpu-box:8470 [REMORA_URL]"),
    token: str | None = typer.Option(
        None, help="Its token; better in REMORA_TOKEN, where ps does not show it"
    ),
    as_cuda: bool = typer.Option(False, "--as-cuda", help='Let "cuda" in the script mean the remora device'),
    lint: bool = typer.Option(False, "--lint", help="Say at the end which lines waited for the executor"),
    lint_json: Annotated[Path | None, typer.Option(help="The same as JSON, into this file")] = None,
) -> None:
    """Run a script with the remora device; its options, output and exit code are its own."""
    if not Path(script).is_file():
        raise fail("run", f"there is no file {script!r}", 2)
    if url:
        os.environ["REMORA_URL"] = url
    if token:
        os.environ["REMORA_TOKEN"] = token
    os.environ["REMORA_AUTOLOAD"] = "1"  # processes that the script starts have the device too
    with failures_in_one_line("run"):
        import remora

        if as_cuda:
            remora.as_cuda()
    if not (lint or lint_json):
        _run(script, arguments)
        return
    from remora.cli import lint as linter

    watched = linter.start()
    try:
        _run(script, arguments)
    finally:
        linter.report(watched, lint_json)


def prepare(script: str, arguments: list[str] | None) -> None:
    """What a script finds when python itself runs it."""
    sys.argv = [script, *(arguments or [])]
    sys.path[0] = str(Path(script).resolve().parent)  # where python itself puts the script's folder


def _run(script: str, arguments: list[str] | None) -> None:
    prepare(script, arguments)
    try:
        runpy.run_path(script, run_name="__main__")
    except Exception as error:
        report(error, script)
        sys.exit(1)
    except KeyboardInterrupt as error:
        report(error, script)
        sys.exit(SIGINT_EXIT)


def report(error: BaseException, script: str) -> None:
    """Its traceback, as python itself would print it."""
    shown = error.with_traceback(below_script(error.__traceback__, script))
    sys.excepthook(type(shown), shown, shown.__traceback__)


def below_script(traceback: TracebackType | None, script: str) -> TracebackType | None:
    """The traceback from the script's own first frame on; None if it never got there."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename != script:
        traceback = traceback.tb_next
    return traceback
