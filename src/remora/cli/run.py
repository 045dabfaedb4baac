"""`remora run`: an unmodified script, with the remora device there."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer

from remora.cli.failure import fail, failures_in_one_line
from remora.transport.address import parse_address

SIGINT_EXIT = 130


def run(
    script: str = typer.Argument(help="The script, as python would run it"),
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGS", help="What follows belongs to the script")
    ] = None,
    url: str | None = typer.Option(
        None, help="The executor, such as http://gpu-box:8470, or several with commas [REMORA_URL]"
    ),
    token: str | None = typer.Option(
        None, help="Its token; better in REMORA_TOKEN, where ps does not show it"
    ),
    placement: str | None = typer.Option(
        None, help="The policy that places rows, such as semantic [REMORA_PLACEMENT]"
    ),
    as_cuda: bool = typer.Option(False, "--as-cuda", help='Let "cuda" in the script mean the remora device'),
    lint: bool = typer.Option(False, "--lint", help="Say at the end which lines waited for the executor"),
    lint_json: Annotated[Path | None, typer.Option(help="The same as JSON, into this file")] = None,
) -> None:
    """Run a script with the remora device; its options, output and exit code are its own."""
    prepare("run", script, url, token, placement, as_cuda)
    if not (lint or lint_json):
        run_script(script, arguments)
        return
    from remora.cli import lint as linter

    watched = linter.start()
    try:
        run_script(script, arguments)
    finally:
        linter.report(watched, lint_json)


def prepare(
    command: str, script: str, url: str | None, token: str | None, placement: str | None, as_cuda: bool
) -> None:
    """Sets up this process, and those that the script starts. Wrong options are one line and an exit."""
    if not Path(script).is_file():
        raise fail(command, f"there is no file {script!r}", 2)
    if url:
        with failures_in_one_line(command):
            for address in filter(None, map(str.strip, url.split(","))):
                parse_address(address)
        os.environ["REMORA_URL"] = url
    if token:
        os.environ["REMORA_TOKEN"] = token
    if placement:
        from remora.plan.policies import policy_named

        with failures_in_one_line(command):
            policy_named(placement)
        os.environ["REMORA_PLACEMENT"] = placement
    os.environ["REMORA_AUTOLOAD"] = "1"  # processes that the script starts have the device too
    with failures_in_one_line(command):
        import remora

        if as_cuda:
            remora.as_cuda()


def run_script(script: str, arguments: list[str] | None) -> dict[str, Any]:
    """Runs it as python would. Returns its globals: while they live, so do its tensors.

    Raises:
        SystemExit: the script asked for it, or failed, and has been reported.
    """
    sys.argv = [script, *(arguments or [])]
    sys.path[0] = str(Path(script).resolve().parent)  # where python itself puts the script's folder
    try:
        return runpy.run_path(script, run_name="__main__")
    except Exception as error:
        _report(error, script)
        sys.exit(1)
    except KeyboardInterrupt as error:
        _report(error, script)
        sys.exit(SIGINT_EXIT)


def _report(error: BaseException, script: str) -> None:
    shown = error.with_traceback(below_script(error.__traceback__, script))
    sys.excepthook(type(shown), shown, shown.__traceback__)


def below_script(traceback: TracebackType | None, script: str) -> TracebackType | None:
    """The traceback from the script's own first frame on; None if it never got there."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename != script:
        traceback = traceback.tb_next
    return traceback
