"""`remora link`: networks of known rate and delay on this machine, made, listed and removed. Needs root and Linux."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from typing import Annotated

import typer

from remora.bench.delay_proxy import delay_proxy
from remora.bench.netns import Known, NoNamespaces, known, network, remove_stale
from remora.cli.failure import fail, failures_in_one_line

DOWN_S = 10.0

app = typer.Typer(
    help="Networks of known rate and delay on this machine (root, Linux).", no_args_is_help=True
)


@app.command()
def up(
    rate: Annotated[
        str, typer.Argument(help="Of each member's link, each way, and its delay: 1gbit or 1gbit,5ms")
    ],
    members: Annotated[int, typer.Option(min=1, max=200, help="Beside this machine itself")] = 1,
    port: Annotated[
        int, typer.Option(help="Where executors will listen in there; a delay needs to know")
    ] = 8470,
) -> None:
    """Make a network, print how to use it, and remove it when this command ends (Ctrl-C, or the end of its input)."""
    from remora.plan.presets import ETHERNET_SHARE, parse_link

    with failures_in_one_line("link"):
        asked = parse_link(rate)
    delay_s = asked.latency_s if "," in rate else 0.0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with ExitStack() as stack:
        try:
            made = stack.enter_context(network(members, asked.bytes_per_s / ETHERNET_SHARE))
        except (NoNamespaces, ValueError) as error:
            raise fail("link", str(error), 2) from None
        typer.echo(f"{made.name}: this machine is {made.address(-1)}")
        for member in range(members):
            address = f"http://{made.address(member)}:{port}"
            if delay_s:
                here = stack.enter_context(delay_proxy(made.address(member), port, delay_s))
                address = f"http://127.0.0.1:{here} ({delay_s * 1e3:g} ms each way)"
            inside = " ".join(made.inside(member))
            typer.echo(
                f"member {member}: {inside} remora serve --host {made.address(member)} --port {port} "
                f"--no-same-host --token-file …; reached at {address}"
            )
        sys.stdout.flush()
        try:
            sys.stdin.read() if not sys.stdin.isatty() else signal.pause()
        except KeyboardInterrupt:
            typer.echo("")


@app.command(name="list")
def list_() -> None:
    """The networks that are there."""
    for one in _known():
        state = f"of process {one.pid}" if one.alive else f"left behind by process {one.pid}"
        typer.echo(f"{one.name}: {state}, {len(one.namespaces) - 1} members")


@app.command()
def down(
    name: Annotated[str | None, typer.Argument(help="As `list` says it; none: what was left behind")] = None,
) -> None:
    """Remove what was left behind, or end a network with the command that holds it."""
    networks = _known()
    if name is not None:
        found = next((one for one in networks if one.name == name), None)
        if found is None:
            raise fail("link", f"there is no network {name}; `remora link list` says which there are", 2)
        if found.alive:
            _end(found)
    removed = {namespace.rpartition("-")[0] for namespace in remove_stale()}
    if name is not None:
        removed.add(name)
    for each in sorted(removed):
        typer.echo(f"removed {each}")


def _known() -> list[Known]:
    try:
        return known()
    except NoNamespaces as error:
        raise fail("link", str(error), 2) from None


def _end(one: Known) -> None:
    """Its process removes it."""
    os.kill(one.pid, signal.SIGTERM)
    until = time.monotonic() + DOWN_S
    while any(other.name == one.name and other.alive for other in known()):
        if time.monotonic() > until:
            raise fail("link", f"process {one.pid} holds {one.name} and did not end within {DOWN_S:g} s", 1)
        time.sleep(0.05)
