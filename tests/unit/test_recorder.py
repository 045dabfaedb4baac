"""Where segments are cut."""

from __future__ import annotations

import sys

from remora.capture.recorder import MAX_CUT_ROWS, Recorder, Segment
from remora.ir.node import Node


def _templates_of_a_loop(n_sites: int, turns: int) -> list[int]:
    """Records `turns` turns of a loop with so many call sites, without a sync; the templates known after each."""
    segments: list[Segment] = []
    recorder = Recorder("test", lambda segment: segments.append(segment), lambda: None)
    known = []
    for _ in range(turns):
        for site in range(n_sites):
            step = recorder.step
            if step is recorder.empty:
                step = recorder.root(None)
            key = (site,)
            after = step.next.get(key)
            if after is None:
                node = Node(f"aten.site{site}.default", (), (), ())
                after = recorder.learn(step, key, node, 0, sys._getframe())
            recorder.step = after
            if after.ends:
                recorder.cut()
        known.append(recorder.templates)
    assert all(len(segment.captured.template.nodes) <= MAX_CUT_ROWS for segment in segments)
    return known


def test_a_loop_that_never_syncs_comes_to_repeat_its_templates_however_few_its_call_sites() -> None:
    for n_sites in range(5, 60, 3):
        known = _templates_of_a_loop(n_sites, 20_000 // n_sites)
        assert known[-1] == known[len(known) // 2], f"a loop of {n_sites} sites makes new templates for ever"
