"""What a program would do on executors that are not there: does it fit, how fast is it, which bytes move.

Plain numbers and names. It prints as text (`str`) and goes to JSON. Errors are one standard deviation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, median_low

import msgspec

from remora.plan.duration import Duration
from remora.plan.timeline import Took

MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one executor. source: where its numbers come from. held: bytes by residency when they were most, '' for what
    nobody recognised. peak_nbytes: with what is computed on the way."""

    device: str
    source: str
    cap_nbytes: int
    held: dict[str, int]
    peak_nbytes: int

    @property
    def missing_nbytes(self) -> int:
        return max(0, self.peak_nbytes - self.cap_nbytes)


@dataclass(frozen=True, slots=True)
class Phase:
    """Programs (sync to sync) of one phase; seconds, rows and bytes are those of one, the median.

    first_s: of the first one, which plans and learns. executors_s: that they compute and exchange, while the client
    captures for client_s. sent_nbytes: what tells the executors what to do. synced: that a sync ends them.
    """

    name: str
    steps: int
    step_s: float
    sigma_s: float
    first_s: float
    client_s: float
    executors_s: float
    executors_sigma_s: float
    rows: int
    sent_nbytes: int
    synced: bool = True

    @property
    def steps_per_s(self) -> float:
        return 1 / self.step_s if self.step_s else 0.0

    @property
    def steps_per_s_sigma(self) -> float:
        return self.steps_per_s * self.sigma_s / self.step_s if self.step_s else 0.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one residency that go one way: an end is an executor's number, or CLIENT. Exact, but for what follows
    from values that counted as zeros."""

    source: int
    target: int
    residency: str
    nbytes: int
    count: int
    seconds: float
    sigma_s: float


@dataclass(frozen=True, slots=True)
class Reads:
    """Values that the program read. guessed: of these, those that depend on something that was not computed and
    counted as zeros. where: of these, by the program's line."""

    count: int
    guessed: int
    nbytes: int
    where: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Forecast:
    """refused: why there is no placement, '' if there is one; the rest is then as if memory were enough."""

    policy: str
    link: str
    executors: tuple[Memory, ...]
    phases: tuple[Phase, ...]
    traffic: tuple[Traffic, ...]
    reads: Reads
    refused: str = ""
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not self.refused and not any(executor.missing_nbytes for executor in self.executors)

    def __str__(self) -> str:
        """Readable at 100 columns."""
        from remora.plan.forecast_text import print_forecast

        return print_forecast(self)

    def to_json(self) -> str:
        """One line, with `fits` and what follows from the other numbers."""
        tree = msgspec.to_builtins(self)
        tree["fits"] = self.fits
        for executor, written in zip(self.executors, tree["executors"], strict=True):
            written["missing_nbytes"] = executor.missing_nbytes
        for phase, written in zip(self.phases, tree["phases"], strict=True):
            written["steps_per_s"] = phase.steps_per_s
            written["steps_per_s_sigma"] = phase.steps_per_s_sigma
        return json.dumps(tree)


def phases(programs: Iterable[Took]) -> tuple[Phase, ...]:
    """Programs by phase, in the order in which the phases began."""
    found: dict[str, list[Took]] = {}
    for took in programs:
        found.setdefault(took.phase, []).append(took)
    return tuple(_phase(name, of_phase) for name, of_phase in found.items())


def _phase(name: str, programs: Sequence[Took]) -> Phase:
    """Of the median step; its error is the model's, and how far the client's part scatters.

    Rows and bytes have medians of their own: which step is the median in time is a matter of the machine's load.
    """
    first = programs[0]
    took = sorted(programs, key=lambda one: one.whole.seconds)[len(programs) // 2]
    clients = [one.client_s for one in programs]
    spread_s = MAD_TO_SIGMA * median(abs(one - median(clients)) for one in clients)
    errors = dict(took.whole.errors)
    if "client" in errors:
        errors["client"] = max(errors["client"], spread_s)
    return Phase(
        name,
        len(programs),
        took.whole.seconds,
        Duration(0.0, errors).sigma_s,
        first.whole.seconds,
        took.client_s,
        took.executors.seconds,
        took.executors.sigma_s,
        int(median_low(one.rows for one in programs)),
        int(median_low(one.nbytes for one in programs)),
        any(one.synced for one in programs),
    )
