"""What was predicted and what was measured, for every template on every device; and what later predictions learn.

A template that has run is predicted as the model says times how wrong the model was about it. One that has not is
corrected by what the device's other templates showed, and trusted less.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log, sqrt
from statistics import median

from remora.plan.duration import Duration

REMEMBERED = 8  # runs of one template on one device
MAX_TEMPLATES = 4096  # entries; the oldest goes first
DOUBT = 0.15  # relative error that is left after one run; it shrinks with the number of runs
NOISE = 0.03  # relative error that never goes away
MAD_TO_SIGMA = 1.4826  # of a normal distribution
FEW = 3  # templates that a device must have shown before the others are corrected by them


@dataclass(frozen=True, slots=True)
class Key:
    """A template on a device, at about one size. size: the bucket that plans are cached by."""

    template: bytes
    size: int
    device: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the record. predicted_s: by the model alone. corrected_s: with what was learned before that run.
    Both, and measured_s, of the last run; factor: measured over predicted, of the runs remembered."""

    key: Key
    runs: int
    predicted_s: float
    corrected_s: float
    measured_s: float
    factor: float


@dataclass
class _Runs:
    count: int = 0
    logs: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    predicted_s: float = 0.0
    corrected_s: float = 0.0
    measured_s: float = 0.0

    def settled(self) -> Sequence[float]:
        """Without the first run, which compiles and takes memory, as soon as there is another."""
        logs = list(self.logs)
        return logs[1:] if self.count == len(logs) > 1 else logs


class Record:
    """Predicted and measured seconds by template, size bucket and device."""

    def __init__(self) -> None:
        self._runs: dict[Key, _Runs] = {}
        self._sizes: dict[tuple[bytes, str], dict[int, Key]] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, key: Key, predicted_s: float, measured_s: float) -> None:
        """One run. predicted_s: by the model alone, for the sizes of this run. Times that are not positive tell
        nothing and are passed over."""
        if not (predicted_s > 0.0 and measured_s > 0.0):
            return
        runs = self._runs.get(key)
        if runs is None:
            while len(self._runs) >= MAX_TEMPLATES:
                self._forget(next(iter(self._runs)))
            runs = self._runs[key] = _Runs()
            self._sizes.setdefault((key.template, key.device), {})[key.size] = key
        corrected = self.correct(key, Duration(predicted_s))
        runs.predicted_s, runs.measured_s, runs.corrected_s = predicted_s, measured_s, corrected.seconds
        runs.count += 1
        runs.logs.append(log(measured_s / predicted_s))

    def correct(self, key: Key, predicted: Duration) -> Duration:
        """The model's prediction with what is known of this template, or of this device."""
        runs = self._nearest(key)
        if runs is not None and runs.logs:
            logs = runs.settled()
            doubt = DOUBT if runs is self._runs.get(key) else 2 * DOUBT
            sigma = sqrt(_spread(logs) ** 2 + (doubt / len(logs)) ** 2 + NOISE**2)
            seconds = predicted.seconds * exp(median(logs))
            name = f"{key.device}: template {key.template.hex()[:8]}"
            return Duration(seconds, {name: seconds * sigma})
        others = [
            median(runs.settled())
            for known, runs in self._runs.items()
            if known.device == key.device and runs.logs
        ]
        if len(others) < FEW:
            return predicted
        sigma = sqrt(_spread(others) ** 2 + DOUBT**2)
        seconds = predicted.seconds * exp(median(others))
        return Duration(seconds, {f"{key.device}: model": seconds * sigma})

    def entries(self) -> list[Entry]:
        """Every line, in the order in which templates first ran."""
        return [
            Entry(
                key,
                runs.count,
                runs.predicted_s,
                runs.corrected_s,
                runs.measured_s,
                exp(median(runs.settled())),
            )
            for key, runs in self._runs.items()
        ]

    def _nearest(self, key: Key) -> _Runs | None:
        """The runs at this size, or at the nearest that has run."""
        exact = self._runs.get(key)
        if exact is not None and exact.logs:
            return exact
        sizes = self._sizes.get((key.template, key.device), {})
        ran = [size for size, known in sizes.items() if self._runs[known].logs]
        if not ran:
            return None
        return self._runs[sizes[min(ran, key=lambda size: (abs(size - key.size), size))]]

    def _forget(self, key: Key) -> None:
        del self._runs[key]
        sizes = self._sizes[key.template, key.device]
        del sizes[key.size]
        if not sizes:
            del self._sizes[key.template, key.device]


def _spread(logs: Sequence[float]) -> float:
    """Standard deviation as the median distance from the median tells it; outliers do not count."""
    if len(logs) < 2:
        return 0.0
    middle = median(logs)
    return MAD_TO_SIGMA * median(abs(value - middle) for value in logs)
