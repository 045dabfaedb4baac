"""Intervals of medians: what they promise is what they keep."""

from __future__ import annotations

import random
import statistics

import pytest

from remora.bench import intervals
from remora.bench.intervals import of_median, of_ratio


@pytest.mark.parametrize(
    ("n", "low", "high", "coverage"),
    [(1, 1, 1, 0.0), (5, 1, 5, 0.9375), (6, 1, 6, 0.96875), (9, 2, 8, 0.9609375), (20, 6, 15, 0.9586)],
)
def test_known_order_statistics(n: int, low: int, high: int, coverage: float) -> None:
    """As in tables of the sign test [Conover, Practical Nonparametric Statistics, A3]."""
    values = [float(i) for i in range(n, 0, -1)]
    interval = of_median(values)
    assert (interval.low, interval.high, interval.trials) == (low, high, n)
    assert interval.median == statistics.median(values)
    assert interval.coverage == pytest.approx(coverage, abs=1e-4)


@pytest.mark.parametrize("n", [5, 7, 8, 15])
def test_the_true_median_is_inside_as_often_as_promised(n: int) -> None:
    """Times as they come: skewed, with outliers. The true median of exp(N(0, 1)) is 1."""
    rng, runs, inside = random.Random(n), 2000, 0
    promised = 0.0
    for _ in range(runs):
        interval = of_median([rng.lognormvariate(0, 1) for _ in range(n)])
        inside += interval.low <= 1 <= interval.high
        promised = interval.coverage
    assert inside / runs == pytest.approx(promised, abs=0.015)


def test_the_bootstrap_promises_more_than_it_keeps() -> None:
    """Why it is not used: at 7 trials its 95 % interval of a median is x(2) to x(6), which keeps 87.5 %."""
    rng = random.Random(0)
    values = [float(i) for i in range(1, 8)]
    medians = sorted(statistics.median(rng.choices(values, k=7)) for _ in range(10_000))
    assert (medians[250], medians[9750]) == (2.0, 6.0)


def test_ratio_of_arms_that_took_turns_forgets_drift() -> None:
    drift = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    interval = of_ratio([3 * d for d in drift], drift)
    assert (interval.low, interval.median, interval.high) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [([], [], "no trials"), ([1.0], [1.0, 2.0], "1 trials against 2"), ([1.0], [0.0], "above 0"),
     ([1.0], [float("nan")], "above 0")],
)  # fmt: skip
def test_what_has_no_ratio_is_refused(a: list[float], b: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        of_ratio(a, b)


def test_a_ratio_of_means_has_a_bootstrap_interval_that_holds_it_and_narrows() -> None:
    rng = random.Random(1)
    few, many = ([[rng.gauss(mean, 1) for _ in range(n)] for mean in (60, 10)] for n in (8, 80))
    wide, narrow = (intervals.of_means(*arms) for arms in (few, many))
    for found in (wide, narrow):
        assert found.low < found.median < found.high
        assert found.low < 6.0 < found.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 2
    assert intervals.of_means(*few) == wide  # the same each time


def test_a_ratio_of_means_refuses_what_it_cannot_know() -> None:
    assert intervals.of_means([6.0, 6.0], [2.0, 2.0]).low == 3.0
    with pytest.raises(ValueError, match="two trials"):
        intervals.of_means([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="above 0"):
        intervals.of_means([1.0, 2.0], [1.0, 0.0])
