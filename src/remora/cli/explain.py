"""`remora explain`: runs a script, then says what lived where, what moved, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remora.cli.failure import fail
from remora.cli.run import run
from remora.errors import RemoraError

if TYPE_CHECKING:
    from remora.plan.explain import Explanation


def explain(
    script: str = typer.Argument(help="The script, as python would run it"),
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGS", help="What follows belongs to the script")
    ] = None,
    url: str | None = typer.Option(None, help="The executor, such as http://gpu-box:8470 [REMORA_URL]"),
    token: str | None = typer.Option(
        None, help="Its token; better in REMORA_TOKEN, where ps does not show it"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="JSON as the last line of stdout, no text")] = False,
    html: Annotated[Path | None, typer.Option(help="A page with the graph, into this file")] = None,
) -> None:
    """Run a script with the remora device, then explain its placement on stderr; the exit code is the script's."""
    ended: SystemExit | None = None
    try:
        run(script, arguments, url, token, False, False, None)
    except SystemExit as error:  # of the script, which is explained as far as it came
        ended = error
    try:
        import remora

        _tell(remora.explain(), as_json, html)
    except (RemoraError, OSError) as error:
        failed = fail("explain", str(error))
        raise (ended or failed) from None
    if ended is not None:
        raise ended


def _tell(explanation: Explanation, as_json: bool, html: Path | None) -> None:
    if html is not None:
        html.write_text(explanation.to_html(), encoding="utf-8")
    if as_json:
        print(explanation.to_json(), flush=True)
    else:
        print(explanation, file=sys.stderr, end="", flush=True)
