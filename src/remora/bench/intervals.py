"""Intervals of medians, of ratios of arms that took turns, and of ratios of whole runs.

The interval of a median is that of order statistics: with n trials, x(k) to x(n+1-k) holds the true median with
probability 1 - 2 P(Binomial(n, 1/2) < k), whatever the distribution of times, which is skewed and has outliers. k is
the largest that keeps 95 %; below six trials not even the smallest and the largest do (93.75 % at five), and the
interval says so in `coverage`. Exact, and without random numbers. The bootstrap is not used there: for a median its
percentile interval is an order-statistics interval too, but one that promises more than it keeps (87.5 % at seven
trials), and BCa's correction does not exist for a median, whose jackknife is not consistent. What whole runs took is a
ratio of means, which has no order statistics: there the bootstrap is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Any

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A median and what it lies between. coverage: how sure that is, at least."""

    median: float
    low: float
    high: float
    coverage: float
    trials: int


def of_median(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The interval of the median of independent trials.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("no trials, so there is no median")
    ordered = sorted(values)
    n = len(ordered)
    k = 1
    while k < (n + 1) // 2 and _coverage(n, k + 1) >= level:
        k += 1
    return Interval(median(ordered), ordered[k - 1], ordered[n - k], _coverage(n, k), n)


def of_ratio(numerators: Sequence[float], denominators: Sequence[float], level: float = LEVEL) -> Interval:
    """The interval of the median ratio of two arms that took turns: trial i of one over trial i of the other.

    A round's two trials ran within seconds of each other, so what slowed both alike cancels.

    Raises:
        ValueError: not as many of each, none, or a denominator that is not above 0.
    """
    if len(numerators) != len(denominators):
        raise ValueError(
            f"{len(numerators)} trials against {len(denominators)}: arms that took turns have as many"
        )
    if any(not below > 0 for below in denominators):
        raise ValueError("a ratio needs denominators above 0")
    return of_median([a / b for a, b in zip(numerators, denominators, strict=True)], level)


def of_means(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0, level: float = LEVEL
) -> Interval:
    """The ratio of the means of two arms, in `median`, with its bootstrap interval (BCa, 9,999 resamples).

    Trials of one arm need not be as many as the other's. coverage: what the bootstrap aims at; few trials keep less.

    Raises:
        ValueError: fewer than two trials of one, or a denominator that is not above 0.
        ModuleNotFoundError: there is no scipy; `pip install remora[bench]` has it.
    """
    import numpy
    from scipy.stats import bootstrap

    if min(len(numerators), len(denominators)) < 2:
        raise ValueError("a bootstrap needs two trials of each arm at least")
    if any(not below > 0 for below in denominators):
        raise ValueError("a ratio needs denominators above 0")

    def ratio(above: Any, below: Any, axis: int = -1) -> Any:
        return numpy.mean(above, axis) / numpy.mean(below, axis)

    value = float(ratio(numerators, denominators))
    if len({*numerators}) == len({*denominators}) == 1:
        return Interval(value, value, value, level, min(len(numerators), len(denominators)))
    found = bootstrap(
        (numerators, denominators), ratio, confidence_level=level, rng=numpy.random.default_rng(seed)
    ).confidence_interval
    return Interval(
        value, float(found.low), float(found.high), level, min(len(numerators), len(denominators))
    )


def _coverage(n: int, k: int) -> float:
    """How often x(k) to x(n+1-k) of n trials holds the median of what they come from."""
    return max(0.0, 1 - 2 * sum(comb(n, i) for i in range(k)) / 2**n)
