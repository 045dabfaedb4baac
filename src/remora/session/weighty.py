"""Segments that go on: where rows take long, a whole program in one segment is planned better and waits for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from remora.capture.recorder import Step
from remora.ir.annotated import Row
from remora.ops.cost import FREE, Work, work
from remora.plan.devices import Device, Pool
from remora.session.graphs import size_of

HELD_ROWS = 2048  # the longest segment
LOOKED_AT = 64  # rows: a light stretch between heavy ones, such as what makes masks, ends nothing
ROW_S = 200e-6  # that a row takes at least, from which on capturing it costs next to nothing


def holding(pool: Pool) -> Callable[[Step], bool] | None:
    """Says of a row behind which a segment could be cut whether it goes on; None: none does.

    It depends on the sizes of what the last rows read and made, so that a program is cut in the same way each time.
    """
    if not pool.devices:
        return None
    return lambda step: step.rows < HELD_ROWS and mean_s(step, pool.devices) >= ROW_S


def mean_s(step: Step, devices: Sequence[Device]) -> float:
    """What one of the last rows takes at the very least."""
    took_s, rows = 0.0, 0
    at: Step | None = step
    while rows < LOOKED_AT and at is not None and at.node is not None:
        if at.least_s is None:
            at.least_s = least_s(at, devices)
        took_s += at.least_s
        at, rows = at.parent, rows + 1
    return took_s / rows if rows else 0.0


def least_s(step: Step, devices: Sequence[Device]) -> float:
    """A row's arithmetic at a device's best rate, or what it writes. What it reads does not count: a decode step, which
    is not to wait, reads all weights."""
    done = _work(step)
    return min(
        max(done.flops / device.peak_flops(done.dtype), done.bytes_written / device.memory_rate)
        for device in devices
    )


def _work(step: Step) -> Work:
    """Of the last call that was recorded here."""
    node, outcome, read = step.node, step.outcome, step.metas or []
    assert node is not None
    if outcome.is_view:
        return FREE
    metas = [read[meta] if isinstance(meta, int) else meta for meta in outcome.outs]
    outs = tuple(None if meta is None else size_of(meta)[0] for meta in metas)
    shares = tuple(meta if isinstance(meta, int) else None for meta in outcome.outs)
    inputs = [None if meta is None else size_of(meta)[0] for meta in read]
    return work(Row(node, outs, shares, tuple(outcome.stale)), inputs, step.holes or [])
