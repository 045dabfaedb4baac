"""Numbers that follow sizes."""

from __future__ import annotations

import pytest

from remora.capture.growth import Grown, fitted

POINTS = [(5, 7), (6, 7), (10, 7), (5, 8), (5, 20), (9, 9)]


@pytest.mark.parametrize(
    "rule", [lambda a, b: 3, lambda a, b: a, lambda a, b: b + 1, lambda a, b: 12 * a - 3 * b + 4]
)
def test_what_is_linear_is_found(rule):
    found = fitted(POINTS, [rule(*point) for point in POINTS])
    for point in (2, 2), (100, 3), (7, 4000):
        assert (found.at(point) if isinstance(found, Grown) else found) == rule(*point)


@pytest.mark.parametrize(
    "rule",
    [
        lambda a, b: a * b,
        lambda a, b: a // 2,
        lambda a, b: max(a, b),
        lambda a, b: float(a),
        lambda a, b: a > 5,
    ],
)
def test_what_is_not_is_refused(rule):
    assert fitted(POINTS, [rule(*point) for point in POINTS]) is None


def test_sizes_that_change_together_count_as_one():
    points = [(5, 6), (7, 8), (9, 10), (105, 106)]
    found = fitted(points, [2 * b for _, b in points])
    assert found == Grown(2, (2, 0))
    assert fitted(points, [a * b for a, b in points]) is None


def test_a_constant_keeps_its_kind():
    assert type(fitted(POINTS, [2.0] * 6)) is float
    assert fitted([(1,), (2,)], [1, 1.0]) is None
    assert fitted([(1,), (2,)], [0.0, -0.0]) is None
