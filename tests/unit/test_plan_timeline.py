"""A program's seconds: the client captures, the executors follow, the answer comes back."""

from __future__ import annotations

import pytest

from remora.plan.devices import Link
from remora.plan.duration import Duration
from remora.plan.timeline import CLIENT_SIGMA, Timeline

NEAR, FAR = Link(1e9, 0.0, 0.0, 0.2), Link(1e9, 0.5, 0.0, 0.2)


def took(seconds: float) -> Duration:
    return Duration(seconds, {"d: product": seconds / 10})


def program(link: Link, segments: list[tuple[float, float]], asked_s: float, nbytes: int = 0):
    timeline = Timeline()
    for captured_s, seconds in segments:
        timeline.segment(captured_s, took(seconds), [link], 100, 10, "decode")
    return timeline.ended(asked_s, link, nbytes)


def test_a_slow_executor_hides_the_capture_of_all_but_the_first_segment() -> None:
    whole = program(NEAR, [(1.0, 5.0), (2.0, 5.0)], asked_s=3.0).whole
    assert whole.seconds == pytest.approx(11.0, abs=1e-3)
    assert whole.errors["client"] == pytest.approx(1.0 * CLIENT_SIGMA)
    assert whole.errors["d: product"] == pytest.approx(1.0)


def test_a_slow_client_hides_the_executor() -> None:
    whole = program(NEAR, [(1.0, 0.1), (9.0, 0.1)], asked_s=10.0).whole
    assert whole.seconds == pytest.approx(10.0, abs=1e-3)
    assert whole.errors["client"] == pytest.approx(10.0 * CLIENT_SIGMA)
    assert "d: product" not in whole.errors  # it would have to be very wrong to matter


def test_a_far_executor_costs_the_way_there_once_and_the_way_back() -> None:
    one = program(FAR, [(1.0, 5.0), (2.0, 5.0)], asked_s=3.0, nbytes=2 * 10**9)
    assert one.whole.seconds == pytest.approx(1.0 + 0.5 + 10.0 + 0.5 + 2.0, abs=1e-3)
    assert (one.client_s, one.executors.seconds, one.rows, one.nbytes) == (3.0, 10.0, 20, 200)


def test_a_program_is_of_the_phase_of_its_largest_segment() -> None:
    timeline = Timeline()
    assert not timeline.started
    timeline.segment(0.1, took(1.0), [NEAR], 0, 3, "decode")
    timeline.segment(0.2, took(1.0), [NEAR], 0, 30, "prefill")
    ended = timeline.ended(0.3, None, 0)
    assert (ended.phase, ended.synced) == ("prefill", False)
    assert ended.whole.seconds == pytest.approx(2.1)
