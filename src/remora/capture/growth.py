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

    From the first point there has to be, along each size that matters, another point that differs in it alone.
    """
    first = values[0]
    if all(type(value) is type(first) and value == first for value in values):
        return first if len({str(value) for value in values}) == 1 else None  # -0.0 equals 0.0
    if any(type(value) is not int for value in values):
        return None
    slopes = []
    for axis in range(len(points[0])):
        slope = _slope(points, values, axis)
        if slope is None:
            return None
        slopes.append(slope)
    start = int(first) - sum(slope * size for slope, size in zip(slopes, points[0], strict=True))
    found = Grown(start, tuple(slopes))
    right = all(found.at(point) == value for point, value in zip(points, values, strict=True))
    return found if right else None


def _slope(points: Sequence[Sizes], values: Sequence[int | float], axis: int) -> int | None:
    origin = points[0]
    for point, value in zip(points, values, strict=True):
        run = point[axis] - origin[axis]
        if run and point[:axis] == origin[:axis] and point[axis + 1 :] == origin[axis + 1 :]:
            rise = int(value) - int(values[0])
            return None if rise % run else rise // run
    return 0
