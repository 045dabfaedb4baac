"""Many scenarios of one trace: axes, all their combinations, and what came of each in plain numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remora.errors import PlanError, UsageError
from remora.plan.policies import POLICIES
from remora.sim.scenario import Scenario, Simulated, simulated
from remora.sim.simulate import Load

MAX_POINTS = 1000
Axis = tuple[str, list[str]]
AXES = ("link", "rtt", "device", "placement", "executors", "sessions")


@dataclass(frozen=True)
class Point:
    """One scenario of a sweep. where: its value on each axis. found: None if it was refused; error: why."""

    where: tuple[tuple[str, str], ...]
    scenario: Scenario
    found: Simulated | None
    error: str = ""

    @property
    def name(self) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in self.where if axis != "placement") or "as asked"

    def content(self) -> dict[str, Any]:
        """What JSON holds. utilisation: of all executors' time, busy; queued_s: of a frame, on average."""
        if self.found is None:
            return {"where": dict(self.where), "error": self.error}
        found, outcome = self.found, self.found.outcome
        count, seconds = len(outcome.busy_s), outcome.seconds
        return {
            "where": dict(self.where),
            "policy": found.policy,
            "seconds": seconds,
            "seconds_sigma": found.sigma_s,
            "phases": [
                {
                    "name": phase.name,
                    "programs": phase.programs,
                    "mean_s": phase.mean_s,
                    "median_s": phase.median_s,
                    "sigma_s": phase.sigma_s,
                    "per_s": phase.per_s,
                }
                for phase in found.phases
            ],
            "executors": count,
            "utilisation": sum(outcome.busy_s) / (count * seconds) if seconds else 0.0,
            "busiest": max(outcome.busy_s) / seconds if seconds else 0.0,
            "queued_s": sum(outcome.queued_s) / max(1, sum(outcome.frames)),
            "most_queued": max(outcome.most_queued),
            "sent_nbytes": outcome.sent_nbytes,
            "received_nbytes": outcome.received_nbytes,
            "pushed_nbytes": outcome.pushed_nbytes,
            "in_nbytes": outcome.in_nbytes if count <= 64 else sum(outcome.in_nbytes),
            "out_nbytes": outcome.out_nbytes if count <= 64 else sum(outcome.out_nbytes),
            "moved": [[*way, nbytes] for way, nbytes in sorted(found.script.moved.items())],
            "held_nbytes": list(found.script.held_nbytes),
            "wasted_programs": outcome.wasted,
            "programs": outcome.n_programs,
            "events": outcome.events,
        }


def parse_sweep(text: str) -> Axis:
    """`link=1gbit,10gbit` to an axis. Values of `link` that have a delay of their own are separated by `;`.

    Raises:
        UsageError: there is no such axis, or it has no values.
    """
    axis, equals, values = text.partition("=")
    words = [word.strip() for word in values.split(";" if ";" in values else ",") if word.strip()]
    if not equals or axis not in AXES or not words:
        raise UsageError(f"--sweep {text!r} is no axis; write one of {', '.join(AXES)}, such as rtt=0,5,50")
    return axis, words


def scenarios(first: Scenario, axes: Sequence[Axis]) -> list[tuple[tuple[tuple[str, str], ...], Scenario]]:
    """All combinations of the axes' values, with what they make of a scenario.

    Raises:
        UsageError: a value is none, or there are too many of them.
    """
    found = []
    for values in itertools.product(*([(axis, value) for value in words] for axis, words in axes)):
        scenario = first
        for axis, value in values:
            scenario = _with(scenario, axis, value)
        found.append((values, scenario))
        if len(found) > MAX_POINTS:
            raise UsageError(f"a sweep has at most {MAX_POINTS} combinations")
    return found


def _with(scenario: Scenario, axis: str, value: str) -> Scenario:
    if axis == "placement":
        if value not in POLICIES:
            raise UsageError(f"no placement {value!r}; there are {', '.join(POLICIES)}")
        return replace(scenario, policy=value)
    if axis == "link":
        return replace(scenario, link=value)
    if axis == "device":
        return replace(scenario, device=value)
    try:
        number = float(value)
        if number < 0 or (axis != "rtt" and (number != int(number) or number < 1)):
            raise ValueError
    except ValueError:
        raise UsageError(f"--sweep {axis}: {value!r} is no number for it") from None
    if axis == "rtt":
        return replace(scenario, rtt_s=number / 1e3)
    if axis == "executors":
        return replace(scenario, executors=int(number))
    return replace(scenario, load=Load(int(number), scenario.load.every_s))


def swept(trace: Path, points: Sequence[tuple[tuple[tuple[str, str], ...], Scenario]]) -> list[Point]:
    """Simulates each. A scenario whose executors are too small is a point that says so.

    Raises:
        UsageError: the trace cannot be read, or a scenario names what there is not.
    """
    found = []
    for where, scenario in points:
        try:
            found.append(Point(where, scenario, simulated(trace, scenario)))
        except PlanError as error:
            found.append(Point(where, scenario, None, str(error)))
    return found
