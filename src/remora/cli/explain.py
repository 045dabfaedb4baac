"""`remora explain`: runs a script, then says what lived where, what moved, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remora.cli.failure import fail
from remora.cli.run import prepare, run_script
from remora.config import ClientSettings
from remora.errors import RemoraError

if TYPE_CHECKING:
    from remora.plan.explain import Explanation

DEFAULT = "semantic"  # placement; without one, nothing would be placed that could be explained


def explain(
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
        None, help="The policy that places rows [REMORA_PLACEMENT, or semantic]"
    ),
    as_cuda: bool = typer.Option(False, "--as-cuda", help='Let "cuda" in the script mean the remora device'),
    as_json: Annotated[bool, typer.Option("--json", help="JSON as the last line of stdout, no text")] = False,
    html: Annotated[Path | None, typer.Option(help="A page with the graph, into this file")] = None,
) -> None:
    """Run a script with the remora device, then explain its placement on stderr; the exit code is the script's."""
    chosen = placement or ClientSettings().placement or DEFAULT
    prepare("explain", script, url, token, chosen, as_cuda)
    ended: SystemExit | None = None
    alive: dict[str, Any] = {}  # what lives at the end of the script is explained
    try:
        alive = run_script(script, arguments)
    except SystemExit as error:  # of the script, which is explained as far as it came
        ended = error
    try:
        import remora

        _tell(remora.explain(), as_json, html)
    except (RemoraError, OSError) as error:
        failed = fail("explain", str(error))
        raise (ended or failed) from None
    alive.clear()
    if ended is not None:
        raise ended


def _tell(explanation: Explanation, as_json: bool, html: Path | None) -> None:
    if html is not None:
        html.write_text(explanation.to_html(), encoding="utf-8")
    if as_json:
        print(explanation.to_json(), flush=True)
    else:
        print(explanation, file=sys.stderr, end="", flush=True)
