"""The `remora` program: registers the commands."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import typer

from remora import __version__
from remora.cli.doctor import doctor
from remora.cli.estimate import estimate
from remora.cli.explain import explain
from remora.cli.run import run
from remora.cli.serve import serve
from remora.cli.sim import sim
from remora.cli.status import status

app = typer.Typer(
    help="Run unmodified PyTorch on accelerators across a network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# everything behind the script's name belongs to the script
app.command(context_settings={"allow_interspersed_args": False})(run)
app.command(context_settings={"allow_interspersed_args": False})(explain)
app.command(context_settings={"allow_interspersed_args": False})(estimate)
app.command()(serve)
app.command()(status)
app.command()(doctor)
app.command()(sim)
if find_spec("remora.cli.bench"):
    app.command()(import_module("remora.cli.bench").bench)
    app.add_typer(import_module("remora.cli.link").app, name="link")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"remora {__version__}")
        raise typer.Exit


@app.callback()
def remora(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print it."
    ),
) -> None:
    """Run unmodified PyTorch on accelerators across a network."""


def main() -> None:
    app()
