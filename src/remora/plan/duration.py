"""Seconds with an error bar, and what they are spent on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import sqrt


@dataclass(frozen=True, slots=True)
class Duration:
    """Predicted seconds.

    errors: one standard deviation in seconds by source, such as a device's rate for products. A rate that is wrong is
    wrong for all rows alike, so errors of one source add up; those of different sources are independent.
    """

    seconds: float = 0.0
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def sigma_s(self) -> float:
        """One standard deviation of the whole, in seconds."""
        return sqrt(sum(error * error for error in self.errors.values()))

    def __add__(self, other: Duration) -> Duration:
        return total((self, other))

    def scaled(self, factor: float) -> Duration:
        return Duration(self.seconds * factor, {name: error * factor for name, error in self.errors.items()})

    def less(self, seconds: float) -> Duration:
        """Without a part of it that is known exactly."""
        return Duration(max(0.0, self.seconds - seconds), self.errors)

    def __str__(self) -> str:
        return f"{self.seconds * 1e3:.3g} ± {self.sigma_s * 1e3:.2g} ms"


def total(parts: Iterable[Duration]) -> Duration:
    """One after the other."""
    seconds = 0.0
    errors: dict[str, float] = {}
    for part in parts:
        seconds += part.seconds
        for name, error in part.errors.items():
            errors[name] = errors.get(name, 0.0) + error
    return Duration(seconds, errors)


def difference(a: Duration, b: Duration) -> Duration:
    """How much longer `a` takes; what both get wrong in the same way falls out."""
    names = a.errors.keys() | b.errors.keys()
    errors = {name: abs(a.errors.get(name, 0.0) - b.errors.get(name, 0.0)) for name in names}
    return Duration(a.seconds - b.seconds, errors)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What something takes: operations, bytes of device memory, bytes on links, and the time of it all."""

    flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    wire_nbytes: int = 0
    duration: Duration = Duration()

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.flops + other.flops,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
            self.wire_nbytes + other.wire_nbytes,
            self.duration + other.duration,
        )
