"""Numbers of a call that follow the sizes of its inputs: found from samples, then computed for any size. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Grown:
    """`base`, and `slopes[i]` more for each one that size `i` is greater."""

    base: int
    slopes: tuple[int, ...]

    def at(self, sizes: Sizes) -> int:
        return self.base + sum(slope * size for slope, size in zip(self.slopes, sizes, strict=True))


Number = int | float | Grown  # a plain number is the same at all sizes


def fitted(points: Sequence[Sizes], values: Sequence[int | float]) -> Number | None:
    """What gives `values[i]` at `points[i]` for all of them; None if nothing linear does.

    Along each size that may change by itself there has to be a point that differs from the first in it alone. Sizes
    that only change together count as one, the first of them.
    """
    first = values[0]
    if all(type(value) is type(first) and value == first for value in values):
        return first if len({str(value) for value in values}) == 1 else None  # -0.0 equals 0.0
    if any(type(value) is not int for value in values):
        return None
    axes = range(len(points[0]))
    alone = {axis for axis in axes if any(_changed(points, point) == {axis} for point in points)}
    slopes = [0] * len(axes)
    tied = [axis for axis in axes if axis not in alone]
    for axis in (*sorted(alone), *tied[:1]):
        together = {axis} if axis in alone else set(tied)
        slope = _slope(points, values, axis, together)
        if slope is None:
            return None
        slopes[axis] = slope
    start = int(first) - sum(slope * size for slope, size in zip(slopes, points[0], strict=True))
    found = Grown(start, tuple(slopes))
    right = all(found.at(point) == value for point, value in zip(points, values, strict=True))
    return found if right else None


def _changed(points: Sequence[Sizes], point: Sizes) -> set[int]:
    """The sizes in which a point differs from the first."""
    return {axis for axis, (size, was) in enumerate(zip(point, points[0], strict=True)) if size != was}


def _slope(
    points: Sequence[Sizes], values: Sequence[int | float], axis: int, together: set[int]
) -> int | None:
    for point, value in zip(points, values, strict=True):
        if _changed(points, point) == together:
            run, rise = point[axis] - points[0][axis], int(value) - int(values[0])
            return None if rise % run else rise // run
    return None
