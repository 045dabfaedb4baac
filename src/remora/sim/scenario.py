"""What if: a recorded program on executors and links of one's choice, in words and in numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, stdev

from msgspec.structs import replace

from remora.errors import UsageError
from remora.plan import trace
from remora.plan.devices import Device, Pool
from remora.plan.kept import MAX_NBYTES, from_json
from remora.plan.policies import policy_named
from remora.plan.presets import parse_link, preset
from remora.plan.record import Key, Record
from remora.sim.placing import Placer
from remora.sim.script import Script
from remora.sim.simulate import Load, Luck, Outcome, World

RECORDED = "recorded"  # a device, or a link: as it was measured when the trace was recorded
EARLY = 4  # a program's first part in so many is left out of what is called steady
MOST_GRANTED = 8  # executors that a session gets, if nobody says how many


@dataclass(frozen=True)
class Scenario:
    """One case.

    device, link: in words (plan/presets.py), the path of a calibration, or RECORDED. pool: these in numbers, instead.
    executors: how many there are; granted: how many of them one session gets, 0: up to MOST_GRANTED of them.
    rtt_s: on top of what links have, between the client and each executor; below 0: nothing.
    run_ahead: None: as recorded. replicas: simulations with other errors of the calibration, for error bars.
    """

    device: str = RECORDED
    link: str = RECORDED
    executors: int = 0
    policy: str = ""
    load: Load = field(default_factory=Load)
    granted: int = 0
    seed: int = 0
    run_ahead: bool | None = None
    replicas: int = 0
    pool: Pool | None = None
    rtt_s: float = -1.0


@dataclass(frozen=True)
class PhaseTimes:
    """Programs of one phase, from a quarter of each session on, so that what happens once is over. mean_s: of one."""

    name: str
    programs: int
    median_s: float
    mean_s: float
    sigma_s: float = 0.0

    @property
    def per_s(self) -> float:
        return 1 / self.mean_s if self.mean_s else 0.0


@dataclass(frozen=True)
class Simulated:
    """What a scenario came to."""

    scenario: Scenario
    pool: Pool
    policy: str
    script: Script = field(repr=False)
    outcome: Outcome = field(repr=False)
    phases: tuple[PhaseTimes, ...] = ()
    sigma_s: float = 0.0

    def stretches(self) -> list[float]:
        """Seconds from each place where the program waited for all to be done to the next one (`synchronize`)."""
        found, since = list[float](), 0.0
        for program in self.outcome.programs:
            since += program.seconds
            if program.waits:
                found.append(since)
                since = 0.0
        return found[1:]


def simulated(path: Path, scenario: Scenario) -> Simulated:
    """Places a trace on a scenario's pool, and simulates it.

    Raises:
        UsageError: the trace, or what the scenario names, is not there. PlanError: it does not fit.
    """
    head, record = learned(path)
    pool = _delayed(scenario.pool or pool_of(head, scenario), scenario.rtt_s)
    name = scenario.policy or ("semantic" if len(pool.devices) > 1 else "local")
    ahead = head.run_ahead if scenario.run_ahead is None else scenario.run_ahead
    placer = Placer(pool, policy_named(name), record, ahead)
    script = placer.place(
        event for event in trace.read(path) if not isinstance(event, trace.Head | trace.Took)
    )
    executors = scenario.executors or len(pool.devices)

    def run(luck: Luck) -> Outcome:
        return World(pool, executors, scenario.load, scenario.seed, luck).run(script)

    outcome = run(Luck(0))
    others = [run(Luck(seed)) for seed in range(1, scenario.replicas + 1)]
    found = phases(outcome, scenario.load.sessions)
    spread = [phases(one, scenario.load.sessions) for one in others]
    found = tuple(
        dataclasses.replace(one, sigma_s=_sigma([times[at].mean_s for times in spread]))
        for at, one in enumerate(found)
    )
    return Simulated(scenario, pool, name, script, outcome, found, _sigma([one.seconds for one in others]))


def learned(path: Path) -> tuple[trace.Head, Record]:
    """The head of a trace, and what its executors measured while it was recorded."""
    events = trace.read(path)
    head = next(events)
    assert isinstance(head, trace.Head)
    record = Record()
    for event in events:
        if isinstance(event, trace.Took):
            key = Key(bytes.fromhex(event.template), event.size, event.device)
            record.add(key, event.predicted_s, event.measured_s)
    return head, record


def pool_of(head: trace.Head, scenario: Scenario) -> Pool:
    """The executors that one session is granted."""
    words = [word.strip() for word in scenario.device.split(",") if word.strip()]
    executors = scenario.executors or max(len(words), len(head.devices) if scenario.device == RECORDED else 1)
    count = scenario.granted or min(executors, MOST_GRANTED)
    if executors < 1 or count > executors:
        raise UsageError(f"a session cannot get {count} of {executors} executors")
    devices = [device for word in words for device in _devices(word, head)]
    devices = [devices[at % len(devices)] for at in range(count)]
    if scenario.link == RECORDED:
        known = head.pool
        return Pool(
            tuple(devices),
            {
                (a, b): known.link(a % len(head.client), b % len(head.client))
                for a in range(count)
                for b in range(count)
                if a % len(head.client) != b % len(head.client)
            },
            tuple(head.client[at % len(head.client)] for at in range(count)),
        )
    link = parse_link(scenario.link)
    return Pool(
        tuple(devices), {(a, b): link for a in range(count) for b in range(count) if a != b}, (link,) * count
    )


def _delayed(pool: Pool, rtt_s: float) -> Pool:
    """With that round trip between the client and each executor; what was measured without one comes on top."""
    if rtt_s < 0:
        return pool
    client = tuple(replace(link, latency_s=link.latency_s + rtt_s / 2) for link in pool.client)
    return replace(pool, client=client)


def _devices(word: str, head: trace.Head) -> Sequence[Device]:
    if word == RECORDED:
        return head.devices
    if word.endswith(".json") or "/" in word:
        try:
            with Path(word).open("rb") as file:
                return [from_json(file.read(MAX_NBYTES + 1), None).device]
        except (OSError, ValueError) as error:
            raise UsageError(f"--device {word}: {error}") from None
    return [preset(word)]


def phases(outcome: Outcome, sessions: int = 1) -> tuple[PhaseTimes, ...]:
    """Programs by phase; those that did nothing but ask are left out."""
    found: dict[str, list[float]] = {}
    for program in outcome.programs:
        if program.phase:
            found.setdefault(program.phase, []).append(program.seconds)
    times = []
    for name, seconds in found.items():
        steady = seconds[len(seconds) // EARLY :] if sessions == 1 else seconds
        times.append(PhaseTimes(name, len(seconds), median(steady), sum(steady) / len(steady)))
    return tuple(times)


def _sigma(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
