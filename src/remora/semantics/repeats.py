"""Blocks of rows that repeat: the layers of a program that has no module paths."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from remora.ir.node import Hole, Ref, Slot
from remora.semantics.attention import PRODUCTS
from remora.semantics.reading import Reading

MIN_ROWS = 2
MAX_PERIODS = 16  # periods that are tried
_LAYERS = PRODUCTS | {"linear", "addmm", "conv1d", "conv2d", "convolution", "scaled_dot_product_attention"}


@dataclass(frozen=True, slots=True)
class Repeat:
    """`count` blocks of `period` rows each, equal in ops and in their wiring among themselves."""

    start: int
    period: int
    count: int


def repeated(reading: Reading) -> Repeat | None:
    """The repetition that covers most rows; of two, the one of shorter blocks. None: no block comes twice."""
    kinds = [_kind(reading, row) for row in range(len(reading.ops))]
    best: Repeat | None = None
    for period in _periods(reading, kinds):
        found = _longest(reading, kinds, period)
        if found is not None and (best is None or found.count * found.period > best.count * best.period):
            best = found
    return best


def _kind(reading: Reading, row: int) -> tuple[object, ...]:
    args = reading.graph.rows[row].node.inputs()
    return (reading.ops[row], *(type(arg) if isinstance(arg, Ref | Slot | Hole) else arg for arg in args))


def _periods(reading: Reading, kinds: list[tuple[object, ...]]) -> list[int]:
    """Distances at which layers' products come again, the most frequent ones, in rising order."""
    at: dict[tuple[object, ...], list[int]] = {}
    for row, kind in enumerate(kinds):
        if reading.ops[row] in _LAYERS:
            at.setdefault(kind, []).append(row)
    counts: Counter[int] = Counter()
    for rows in at.values():
        for step in range(1, min(len(rows), 33)):
            counts.update(later - row for row, later in zip(rows, rows[step:], strict=False))
    return sorted(period for period, _ in counts.most_common(MAX_PERIODS) if period >= MIN_ROWS)


def _longest(reading: Reading, kinds: list[tuple[object, ...]], period: int) -> Repeat | None:
    best, length = 0, 0
    run = 0
    for row in range(len(kinds) - period):
        same = kinds[row] == kinds[row + period] and _wired_alike(reading, row, period, row - run)
        run = run + 1 if same else 0
        if run > length:
            best, length = row + 1 - run, run
    if length < period:
        return None
    count = length // period + 1
    block = range(best, best + period)
    return Repeat(best, period, count) if any(reading.ops[row] in _LAYERS for row in block) else None


def _wired_alike(reading: Reading, row: int, period: int, start: int) -> bool:
    """Inputs from within the blocks are equally far; those from before where they start may be anywhere."""
    for one, other in zip(reading.inputs[row], reading.inputs[row + period], strict=True):
        if isinstance(one, Ref) and isinstance(other, Ref):
            within = one.row >= start or other.row >= start + period
            if within and one.row + period != other.row:
                return False
    return True
