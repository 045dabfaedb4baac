"""`remora estimate`: a script on executors that are not there: does it fit, how fast is it, what moves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from remora.cli.failure import fail, failures_in_one_line
from remora.cli.run import run_script
from remora.cli.serve import parse_nbytes


def estimate(
    script: str = typer.Argument(help="The script, as python would run it"),
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGS", help="What follows belongs to the script")
    ] = None,
    device: str = typer.Option(
        "h100",
        help="Executors' devices, such as h100,a10: names, files of calibrations, addresses to be measured",
    ),
    link: Annotated[
        list[str] | None,
        typer.Option(help="Rate and one-way delay, such as 10gbit,5ms; once for all, or once for each"),
    ] = None,
    placement: str | None = typer.Option(None, help="The policy; with several devices semantic, else local"),
    memory: str = typer.Option("0", help="What each executor grants, such as 20GiB; 0: what it has"),
    token: str | None = typer.Option(None, help="Of executors that are measured [REMORA_TOKEN]"),
    text_token: int = typer.Option(
        0, help="What an integer counts as that nothing computed: a token that does not end a text"
    ),
    as_cuda: bool = typer.Option(False, "--as-cuda", help='Let "cuda" in the script mean the remora device'),
    as_json: Annotated[bool, typer.Option("--json", help="JSON as the last line of stdout, no text")] = False,
) -> None:
    """Run a script with nothing computed, then print on stderr what it would take; exit code 1: it does not fit."""
    if not Path(script).is_file():
        raise fail("estimate", f"there is no file {script!r}", 2)
    with failures_in_one_line("estimate"):
        try:
            memory_nbytes = parse_nbytes(memory)
        except ValueError as error:
            raise fail("estimate", str(error), 2) from None
        import remora

        remora.activate()  # brings torch, which has to come before what follows
        from remora.session.rehearsal import rehearsing

        sessions = rehearsing(device, link or [], placement, memory_nbytes, token, text_token)
        if as_cuda:
            remora.as_cuda()
    code = 0
    try:
        lives = run_script(script, arguments)  # noqa: F841  # its tensors end behind the estimate
    except SystemExit as ended:  # of the script, which is estimated as far as it came
        code = _code(ended)
    if not sessions:
        raise fail("estimate", "the script never used the remora device", code or 1)
    forecast = sessions[-1].forecast()
    if as_json:
        print(forecast.to_json(), flush=True)
    else:
        print(forecast, file=sys.stderr, end="", flush=True)
    if code or not forecast.fits:
        raise typer.Exit(code or 1)


def _code(ended: SystemExit) -> int:
    """The script's exit code, as python would make it."""
    if isinstance(ended.code, int | None):
        return ended.code or 0
    print(ended.code, file=sys.stderr)
    return 1
