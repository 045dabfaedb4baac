"""Which segments go on where they could be cut: by what their rows take, not by what they read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from remora.capture.recorder import MIN_CUT_ROWS, Recorder, Step
from remora.device.meta import contiguous_meta
from remora.ir.node import Node, Ref, Slot
from remora.ops.cost import Kind
from remora.plan.devices import Device, Pool, Rates, flat
from remora.session.weighty import HELD_ROWS, LOOKED_AT, holding

MOVE = Rates(0.0, flat(10e9), flat(10e9))
PRODUCT = Rates(0.0, flat(10e9), flat(10e9), {"float32": flat(100e9)})


def pool(n: int = 1) -> Pool:
    return Pool(
        tuple(
            Device("d", 1 << 30, 1e-6, 0.0, 0.0, {Kind.MOVE: MOVE, Kind.PRODUCT: PRODUCT}) for _ in range(n)
        )
    )


def grown(step: Step, tokens: int, rows: int, op: str = "aten.mm.default") -> Step:
    """More rows, each a product of `tokens` rows with a weight of 1 MB, or another op of the same sizes."""
    for _ in range(rows):
        after = Step(step)
        after.rows = step.rows + 1
        made = contiguous_meta((tokens, 512), torch.float32)
        after.node = Node(op, (Ref(step.rows - 1, 0) if step.rows else Slot(0), Slot(1)))
        after.metas = [made, contiguous_meta((512, 512), torch.float32)]
        after.outcome = SimpleNamespace(is_view=False, outs=(made,), stale=())
        step = after
    return step


@pytest.mark.parametrize(("tokens", "goes_on"), [(1, False), (8, False), (512, True)])
def test_a_prefill_goes_on_and_a_decode_step_is_cut(tokens, goes_on):
    """512 tokens take 2.7 ms a row; one token 5 us of arithmetic, though its weights are as many bytes."""
    holds = holding(pool())
    assert holds is not None
    assert holds(grown(Step(), tokens, 40)) is goes_on


def test_a_light_stretch_between_heavy_rows_ends_nothing():
    holds = holding(pool(2))
    light = grown(grown(Step(), 512, LOOKED_AT), 1, LOOKED_AT // 2, "aten.add.Tensor")
    assert holds(light)
    assert not holds(grown(light, 1, LOOKED_AT, "aten.add.Tensor"))


def test_the_same_rows_with_other_sizes_are_judged_anew():
    holds, step = holding(pool()), grown(Step(), 512, 1)
    assert holds(step)
    step.metas[0] = step.outcome.outs = contiguous_meta((1, 512), torch.float32)
    step.outcome.outs, step.least_s = (step.metas[0],), None  # as recording does
    assert not holds(step)


def test_no_segment_is_longer_than_allowed_and_nothing_goes_on_without_measurements():
    step = grown(Step(), 512, LOOKED_AT)
    step.rows = HELD_ROWS
    assert not holding(pool())(step)
    assert holding(Pool(())) is None


@pytest.mark.parametrize(("tokens", "cuts"), [(1, 1), (512, 0)])
def test_a_second_heavy_call_stays_in_the_segment_of_the_first(tokens, cuts):
    recorder = Recorder("session", lambda segment: None, lambda: None)
    recorder.holds = holding(pool())
    recorder.step = grown(Step(), tokens, LOOKED_AT)
    recorder.step.uncounted = MIN_CUT_ROWS
    before = recorder.segment
    recorder.cut_before_call()
    assert (recorder.segment != before) == bool(cuts)
