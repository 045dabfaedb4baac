"""What a picture shows, as plain values: made by series.py and growth.py, drawn by draw.py, tested in between."""

from __future__ import annotations

from dataclasses import dataclass

from remora.bench.intervals import Interval


@dataclass(frozen=True)
class Value:
    """A number and what it lies between; simulated: nothing ran, so there is nothing to be sure of."""

    median: float
    low: float
    high: float
    trials: int
    simulated: bool = False

    @property
    def alone(self) -> bool:
        """One trial: it has no interval."""
        return self.trials == 1 and not self.simulated

    @property
    def spread(self) -> tuple[float, float] | None:
        """How far the interval goes below and above; None: there is none."""
        if self.trials == 1:
            return None
        return self.median - self.low, self.high - self.median


def value(interval: Interval, simulated: bool = False) -> Value:
    return Value(interval.median, interval.low, interval.high, interval.trials, simulated)


@dataclass(frozen=True)
class Head:
    """What all pictures have. name: of its file. runs: that its numbers are of."""

    name: str
    title: str
    caption: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Missing:
    """A picture that cannot be drawn. needs: what would have to be measured."""

    name: str
    title: str
    needs: str


@dataclass(frozen=True)
class Bars:
    """Groups of bars, one for each arm. values: by (group, arm); an arm that a group lacks is left out."""

    head: Head
    label: str
    groups: tuple[str, ...]
    arms: tuple[str, ...]
    values: dict[tuple[str, str], Value]
    sideways: bool = False
    one: str = ""  # what a line at 1 means; '': there is no line


@dataclass(frozen=True)
class Line:
    name: str
    points: tuple[tuple[float, Value], ...]


@dataclass(frozen=True)
class Panel:
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Lines:
    """Panels side by side; equal names of lines are of one colour in all of them."""

    head: Head
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Grid:
    """values: by (x, y)."""

    title: str
    values: dict[tuple[str, str], Value]


@dataclass(frozen=True)
class Heat:
    """Shares of time saved, coloured by what they reach."""

    head: Head
    x_label: str
    y_label: str
    xs: tuple[str, ...]
    ys: tuple[str, ...]
    grids: tuple[Grid, ...]


@dataclass(frozen=True)
class Scatter:
    """Points (measured, predicted), in ms, and the bands of 10 % and 25 %."""

    head: Head
    clouds: tuple[tuple[str, tuple[tuple[Value, float], ...]], ...]


@dataclass(frozen=True)
class Verdict:
    """margin: 1 is the bar, below it is better; None: missed, and not by a size."""

    experiment: str
    name: str
    text: str
    ok: bool
    margin: float | None


@dataclass(frozen=True)
class Verdicts:
    head: Head
    verdicts: tuple[Verdict, ...]


Figure = Bars | Lines | Heat | Scatter | Verdicts
