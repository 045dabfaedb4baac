"""`remora status`: what an executor is doing."""

from __future__ import annotations

import typer

from remora.cli.failure import fail, failures_in_one_line
from remora.config import ClientSettings
from remora.wire.messages import Status


def status(
    url: str | None = typer.Argument(None, help="The executor, such as http://gpu-box:8470 [REMORA_URL]"),
    token: str | None = typer.Option(None, help="Its token [REMORA_TOKEN]"),
    as_json: bool = typer.Option(False, "--json", help="Print JSON"),
    timeout_s: float = typer.Option(5.0, "--timeout", help="Seconds to wait for an answer"),
) -> None:
    """Show an executor's device, memory, sessions and counters."""
    settings = ClientSettings()
    url = url or settings.url
    if url is None:
        raise fail("status", "which executor? Give its URL or set REMORA_URL", 2)
    with failures_in_one_line("status"):
        answer = _ask(url, token or settings.token, settings, timeout_s)
    if as_json:
        _print_json(answer)
    else:
        _print_tables(url, answer)


def _ask(url: str, token: str | None, settings: ClientSettings, timeout_s: float) -> Status:
    from remora.transport.http import HttpTransport

    transport = HttpTransport(url, token, ca_file=settings.ca_file, mode=settings.transport)
    try:
        return transport.status(timeout_s)
    finally:
        transport.close()


def _print_json(answer: Status) -> None:
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())


def _print_tables(url: str, answer: Status) -> None:
    from rich.console import Console
    from rich.table import Table

    facts = Table(show_header=False, box=None)
    for name, value in [
        ("executor", f"{answer.executor} at {url}"),
        ("device", answer.device),
        ("memory", f"{nbytes_text(answer.used_nbytes)} of {nbytes_text(answer.memory_nbytes)} used"),
        ("sessions", str(answer.sessions)),
        ("up", f"{answer.uptime_s:.0f} s, {answer.workers_started} workers started"),
        ("versions", f"remora {answer.version}, protocol {answer.protocol}, torch {answer.torch}"),
    ]:
        facts.add_row(name, value)
    console = Console()
    console.print(facts)
    if answer.principals:
        counters = sorted({counter for counts in answer.principals.values() for counter in counts})
        principals = Table("principal", *counters)
        for principal, counts in sorted(answer.principals.items()):
            principals.add_row(principal, *[_counter_text(name, counts.get(name, 0)) for name in counters])
        console.print(principals)


def _counter_text(name: str, value: float) -> str:
    if "bytes" in name:
        return nbytes_text(int(value))
    return f"{value:.1f}" if name.endswith("_s") else f"{value:.0f}"


def nbytes_text(nbytes: int) -> str:
    """Such as '512 B' or '1.5 GiB'."""
    if nbytes < 1024:
        return f"{nbytes} B"
    size = float(nbytes)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"
