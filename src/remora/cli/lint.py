"""The sync linter's report, for `remora run --lint`."""

from __future__ import annotations

import json
import linecache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from remora.session.lint import Lint, Place

MAX_SOURCE_CHARS = 60
FILE_COLUMNS = 160  # where stderr is no terminal
KINDS = {
    "branch": "branch on a value",
    "number": "number read",
    "copy": "copy to the CPU",
    "compare": "torch.equal",
    "print": "print",
    "save": "save or pickle",
    "shape": "shape from data",
    "generator": "generator state",
    "synchronize": "synchronize",
    "upload": "upload",
}


def start() -> Lint:
    """Watches every session that this process opens from now on."""
    import remora

    remora.activate()  # brings torch, which has to come before what follows
    from remora.session.connect import opened
    from remora.session.lint import Lint

    lint = Lint()
    opened.append(lint.watch)
    return lint


def report(lint: Lint, json_path: Path | None = None) -> None:
    """A table on stderr; with `json_path` also the numbers there."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=FILE_COLUMNS)
    if lint.found:
        console.print(table(lint))
    console.print(summary(lint), highlight=False)
    if json_path is not None:
        json_path.write_text(json.dumps(as_json(lint), indent=2) + "\n")


def summary(lint: Lint) -> str:
    if lint.round_trip_s is None:
        return "remora lint: the script opened no session, so nothing waited"
    calls = sum(blocked.calls for blocked in lint.found.values())
    rows = lint.costs()
    if not rows:
        return f"remora lint: nothing waited; a round trip would take {lint.round_trip_s * 1e3:.2f} ms"
    total_ms = sum(cost_s for _, _, cost_s in rows) * 1e3
    return (
        f"remora lint: {calls} waits cost {total_ms:.1f} ms at a round trip of {lint.round_trip_s * 1e3:.2f} ms; "
        "'waited' has the executor's own work in it"
    )


def table(lint: Lint) -> Table:
    from rich.table import Table

    from remora.session.lint import HINTS

    shown = Table(
        "where", "what", "times", "ms each", "ms in all", "waited ms", "instead", title="What waited"
    )
    for column in shown.columns[2:6]:
        column.justify = "right"
    for where, blocked, cost_s in lint.costs():
        cost_ms = cost_s * 1e3
        shown.add_row(
            _where(where),
            KINDS[where.kind] + (f"\n{where.op}" if where.op else ""),
            str(blocked.calls),
            f"{cost_ms / blocked.calls:.2f}",
            f"{cost_ms:.1f}",
            f"{blocked.waited_s * 1e3:.1f}",
            HINTS[where.kind],
        )
    return shown


def _where(where: Place) -> str:
    from rich.markup import escape

    source = linecache.getline(where.file, where.line).strip()
    path = Path(where.file)
    here = path.is_relative_to(Path.cwd())
    lines = [f"{path.relative_to(Path.cwd()) if here else Path(*path.parts[-2:])}:{where.line}"]
    if source:
        lines.append(source if len(source) <= MAX_SOURCE_CHARS else source[: MAX_SOURCE_CHARS - 1] + "…")
    if where.via:
        lines.append(f"in {where.via}")
    return escape("\n".join(lines))


def as_json(lint: Lint) -> dict[str, object]:
    """round_trip_s, and a row a place: seconds and counts, nothing rounded."""
    return {
        "round_trip_s": lint.round_trip_s,
        "waits": [
            {
                **where._asdict(),
                "calls": blocked.calls,
                "round_trips": blocked.round_trips,
                "cost_s": cost_s,
                "waited_s": blocked.waited_s,
            }
            for where, blocked, cost_s in lint.costs()
        ],
    }
