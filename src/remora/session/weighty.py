"""Segments that go on: where rows take long, a whole program in one segment is planned better and waits for nothing."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from remora.capture.recorder import Step
from remora.plan.devices import Pool
from remora.session.graphs import size_of

HELD_ROWS = 2048  # the longest segment
LOOKED_AT = 24  # rows
ROW_S = 50e-6  # that a row's output takes to be written, from which on capturing it costs next to nothing


def holding(pool: Pool) -> Callable[[Step], bool] | None:
    """Says of a row behind which a segment could be cut whether it goes on; None: none does.

    It depends on the sizes of what the last rows made, so that a program is cut in the same way each time.
    """
    if not pool.devices:
        return None
    least_nbytes = ROW_S * min(device.memory_rate for device in pool.devices)
    return lambda step: step.rows < HELD_ROWS and made_nbytes(step) >= least_nbytes


def made_nbytes(step: Step) -> float:
    """The median size of what the last rows made, views left out."""
    sizes: list[int] = []
    at: Step | None = step
    for _ in range(LOOKED_AT):
        if at is None or at.node is None:
            break
        if not at.outcome.is_view:
            sizes += [
                size_of(meta)[1] for meta in at.outcome.outs if meta is not None and not isinstance(meta, int)
            ]
        at = at.parent
    return median(sizes) if sizes else 0.0
