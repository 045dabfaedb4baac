"""The report's tables: every number with its trials and interval, under the command that made it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from remora.bench.records import SIMULATED, Bar, Row, Run, Sample
from remora.bench.report.evidence import Evidence
from remora.bench.report.figures import Missing, Value
from remora.bench.report.series import SAVED, gains, per_unit_ms, per_unit_nbytes, rate_name

ONE_TRIAL, NO_INTERVAL, FEW = "one trial", "no interval", 6


@dataclass(frozen=True)
class Table:
    """rows: as many cells as heads, as text. numeric: columns of numbers. missed: rows that tell of a failure."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    missed: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """All of one run."""

    run: Run
    tables: tuple[Table, ...]


def sections(evidence: Evidence) -> tuple[Section, ...]:
    """A section for each run that left something, the newest first."""
    found = []
    for name, run in sorted(evidence.runs.items(), key=lambda item: item[1].started, reverse=True):
        tables = (
            _bars([bar for bar in evidence.bars if bar.run == name]),
            _samples([sample for sample in evidence.samples if sample.run == name]),
            _rows([row for row in evidence.rows if row.run == name]),
        )
        found.append(Section(run, tuple(table for table in tables if table.rows)))
    return tuple(found)


def number(value: float | None) -> str:
    """Four digits."""
    if value is None:
        return "not measured"
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 and value == round(value) else f"{value:.4g}"


def _bars(bars: Sequence[Bar]) -> Table:
    rows = tuple(
        (bar.name, number(bar.value), f"{bar.op} {number(bar.bar)}", "met" if bar.ok else "missed")
        for bar in bars
    )
    missed = frozenset(at for at, bar in enumerate(bars) if not bar.ok)
    return Table("Bars", ("bar", "value", "must be", ""), rows, frozenset({1, 2}), missed)


def _samples(samples: Sequence[Sample]) -> Table:
    heads = ("workload", "arm", "link", "per", "ms", "interval", "trials", "bytes", "predicted ms", "outputs")
    rows = tuple(tuple(_sample_cells(sample)) for sample in samples)
    missed = frozenset(
        at for at, sample in enumerate(samples) if sample.identical is False or not sample.seconds
    )
    return Table("Samples", heads, rows, frozenset({4, 5, 6, 7, 8}), missed)


def _sample_cells(sample: Sample) -> Iterator[str]:
    shape = ", ".join(f"{key.replace('_', ' ')} {size:g}" for key, size in sample.shape.items())
    yield f"{sample.workload} ({shape})" if shape else sample.workload
    yield sample.arm
    yield link_text(sample)
    yield sample.unit
    if sample.seconds:
        ms, nbytes = per_unit_ms(sample), per_unit_nbytes(sample)
        yield number(ms.median)
        yield interval_text(ms)
        yield str(len(sample.seconds))
        yield number(nbytes.median) if nbytes else "not counted"
    else:
        yield from ("failed", "", "0", "")
    yield number(sample.predicted_s / sample.units * 1e3) if sample.predicted_s is not None else ""
    yield {True: "equal to local", False: "DIFFER from local", None: "not compared"}[sample.identical]


def link_text(sample: Sample) -> str:
    """The link in words; what was simulated says so."""
    link = sample.link
    parts = ["simulated" if sample.how == SIMULATED else link.by]
    if link.gbit_per_s is not None:
        parts.append(rate_name(link.gbit_per_s))
    if link.carried_gbit_per_s is not None:
        parts.append(f"carries {link.carried_gbit_per_s:.3g}")
    if link.rtt_ms is not None:
        parts.append(f"RTT {link.rtt_ms:g} ms")
    parts += [
        part for part in (_unusual(sample.transport, "websocket"), _unusual(sample.device, "cpu")) if part
    ]
    parts.append("1 executor" if sample.executors == 1 else f"{sample.executors} executors")
    if sample.bound:
        parts.append(f"bound by {sample.bound}")
    return ", ".join(parts)


def _unusual(text: str, usual: str) -> str:
    return "" if text == usual else text


def interval_text(value: Value) -> str:
    """What a number lies between, or why that is not known."""
    if value.simulated:
        return "simulated"
    if value.alone:
        return ONE_TRIAL
    few = f" ({value.trials} trials)" if value.trials < FEW else ""
    return f"{number(value.low)} to {number(value.high)}{few}"


def _rows(rows: Iterable[Row]) -> Table:
    heads = ("measure", "arm", "median", "unit", "interval", "smallest", "largest", "trials")
    cells = tuple(
        (
            row.measure,
            row.arm,
            number(row.median),
            row.unit,
            _row_interval(row),
            number(row.low),
            number(row.high),
            str(row.trials),
        )
        for row in rows
    )
    return Table("Measures", heads, cells, frozenset({2, 4, 5, 6, 7}))


def _row_interval(row: Row) -> str:
    if row.trials == 1:
        return ONE_TRIAL
    if row.low95 is None or row.high95 is None:
        return NO_INTERVAL
    few = f" ({row.trials} trials)" if row.trials < FEW else ""
    return f"{number(row.low95)} to {number(row.high95)}{few}"


def reached(evidence: Evidence) -> Table | None:
    """From which cache on an arm saves 50 % and 90 % of blind's time, for each rate; None: not measured."""
    heat = gains(evidence)
    if isinstance(heat, Missing):
        return None
    rows = []
    for grid in heat.grids:
        for x in heat.xs:
            saved = [(y, grid.values[x, y]) for y in heat.ys if (x, y) in grid.values]
            firsts = [_first(saved, share) for share in SAVED]
            rows.append((grid.title, x, *firsts))
    heads = ("arm", "link", *(f"{share:.0%} saved from a cache of" for share in SAVED))
    return Table("Where the gain is", heads, tuple(rows), frozenset({2, 3}))


def _first(saved: list[tuple[str, Value]], share: float) -> str:
    """The smallest cache from which on all save that much."""
    found = ""
    for y, value in reversed(saved):
        if value.median < share:
            break
        found = f"{y} (simulated)" if value.simulated else y
    return found or "at none"


def missing(evidence: Evidence, expected: Iterable[str]) -> tuple[str, ...]:
    """Experiments without a record."""
    return tuple(name for name in expected if name not in evidence.experiments())
