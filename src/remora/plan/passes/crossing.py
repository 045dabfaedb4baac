"""Rows behind which a part ends, so that what another executor reads sets out at once. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from remora.ir.annotated import Row
from remora.ir.node import Ref

CLOSE_ROWS = 8  # what is made within so many rows travels together


def crossing(rows: Sequence[Row], executors: Sequence[int]) -> frozenset[int]:
    """Rows that are read on another executor than theirs, without those that another one follows closely there."""
    read_elsewhere = {
        arg.row
        for row, executor in zip(rows, executors, strict=True)
        for arg in row.tensors()
        if isinstance(arg, Ref) and executors[arg.row] != executor
    }
    kept: set[int] = set()
    position: dict[int, int] = {}
    last: dict[int, tuple[int, int]] = {}  # by executor: the cut that may still go, and where it is there
    for number, executor in enumerate(executors):
        position[executor] = position.get(executor, 0) + 1
        if number in read_elsewhere:
            if executor in last and position[executor] - last[executor][1] <= CLOSE_ROWS:
                kept.discard(last[executor][0])
            kept.add(number)
            last[executor] = number, position[executor]
    return frozenset(kept)
