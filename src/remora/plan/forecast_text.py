"""A forecast as text: aligned, 100 columns wide, free of control characters."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from remora.plan.explain_text import COLUMNS, amount, duration, place, plain, times
from remora.plan.forecast import Forecast, Memory, Phase, Reads

MEASURES = {"prefill": "TTFT", "decode": "TPOT"}  # what the seconds of one step are called
LINES_SHOWN = 8
NO_NAME = "other"


def print_forecast(tree: Forecast) -> str:
    """The whole of it, ending in a newline."""
    n = len(tree.executors)
    lines = [f"remora estimate: {times(n, 'executor')}, placement {tree.policy}, link {tree.link}", ""]
    lines += _memory(tree)
    if tree.phases:
        lines += ["", *_phases(tree.phases)]
    lines += ["", *_bytes(tree)]
    notes = [*_assumed(tree.reads), *tree.notes]
    if notes:
        lines += ["", "Notes"]
        for note in notes:
            lines += wrap(plain(note, 2000), COLUMNS, initial_indent="  - ", subsequent_indent="    ")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _memory(tree: Forecast) -> list[str]:
    lines = ["Memory: it fits" if tree.fits else "Memory: it DOES NOT FIT"]
    if tree.refused:
        lines += wrap(plain(tree.refused, 2000), COLUMNS, initial_indent="  ", subsequent_indent="  ")
    names = list(dict.fromkeys(name for executor in tree.executors for name in sorted(executor.held)))
    heads = [name or NO_NAME for name in names]
    rows = [["executor", *heads, "peak", "cap", "missing" if not tree.fits else "free"]]
    for at, executor in enumerate(tree.executors):
        held = [amount(executor.held.get(name, 0)) for name in names]
        left = executor.cap_nbytes - executor.peak_nbytes
        last = amount(left) if tree.fits else amount(executor.missing_nbytes)
        rows.append(
            [_device(at, executor), *held, amount(executor.peak_nbytes), amount(executor.cap_nbytes), last]
        )
    lines += _table(rows)
    needed, cap = (
        sum(one.peak_nbytes for one in tree.executors),
        sum(one.cap_nbytes for one in tree.executors),
    )
    if len(tree.executors) > 1 and needed > cap:
        lines.append(f"  together they need {needed:,} bytes and have {cap:,}: {needed - cap:,} missing")
    return lines


def _device(at: int, executor: Memory) -> str:
    return plain(f"{at} {executor.device} ({executor.source})", 40)


def _phases(phases: Sequence[Phase]) -> list[str]:
    rows = [["Speed", "steps", "one step", "steps a second", "client", "executors"]]
    for phase in phases:
        measure = MEASURES.get(phase.name)
        name = (phase.name or NO_NAME) + (f" ({measure})" if measure else "")
        rows.append(
            [
                "  " + plain(name, 24),
                f"{phase.steps:,}",
                _with_error(phase.step_s, phase.sigma_s),
                f"{phase.steps_per_s:.3g} ± {phase.steps_per_s_sigma:.2g}",
                duration(phase.client_s),
                _with_error(phase.executors_s, phase.executors_sigma_s),
            ]
        )
    return _table(rows, indent="")


def _with_error(seconds: float, sigma_s: float) -> str:
    return f"{duration(seconds)} ± {duration(sigma_s)}"


def _bytes(tree: Forecast) -> list[str]:
    rows = [["Bytes", "", "messages", "link time"]]
    for flow in tree.traffic:
        rows.append(
            [
                f"  {place(flow.source)} to {place(flow.target)}: {flow.residency or NO_NAME}",
                amount(flow.nbytes),
                f"{flow.count:,}",
                _with_error(flow.seconds, flow.sigma_s),
            ]
        )
    rows.append(["  returned to the client", amount(tree.reads.nbytes), f"{tree.reads.count:,}", ""])
    for phase in tree.phases:
        name = phase.name or NO_NAME
        rows.append([f"  instructions, one step of {name}", amount(phase.sent_nbytes), "", ""])
    return _table(rows, indent="")


def _assumed(reads: Reads) -> list[str]:
    if not reads.guessed:
        return []
    shown = [f"{line} ({count:,})" for line, count in reads.where[:LINES_SHOWN]]
    more = len(reads.where) - len(shown)
    return [
        f"{reads.guessed:,} of {times(reads.count, 'read')} depend on values that nothing computed: these counted as "
        f"zeros (integers as --text-token), and branches on them were taken so: {', '.join(shown)}"
        + (f" and {more:,} more" if more > 0 else "")
    ]


def _table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Columns as wide as needed, the first to the left, the others to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        indent
        + "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
