"""Arms that take turns at one workload on one link: exact, counted, and refused where they are not what they say."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from remora.bench import records
from remora.bench.arms import Arm, ArmProcess, Trial, digest, forked_each
from remora.bench.ceiling import check_not_before
from remora.bench.harness import CLOCK_SLACK, NotAsSaid, Report, check_physics, interleave
from remora.bench.links import Executors
from remora.bench.records import CLIENT
from remora.bench.workloads import Build, Outputs, Running

Digests = tuple[str, ...]
BOTH_WAYS, UP, DOWN, BETWEEN = "both ways", "up", "down", "between executors"


@dataclass(frozen=True)
class Carries:
    """Payload bytes of a trial that an arm says it carries in one direction, and what framing may add.

    direction: UP from the client, DOWN to it, BOTH_WAYS, or BETWEEN executors.
    """

    direction: str
    nbytes: int
    framing_nbytes: int

    def problem(self, ways: dict[str, int]) -> str:
        """Why these bytes by way are not what was said, '' if they are."""
        found = carried(ways)[self.direction]
        if self.nbytes <= found <= self.nbytes + self.framing_nbytes:
            return ""
        most = self.nbytes + self.framing_nbytes
        return f"{found:.0f} bytes {self.direction}, where {self.nbytes} to {most} were to be"


def carried(ways: dict[str, int]) -> dict[str, int]:
    """Bytes by direction."""
    found = dict.fromkeys((UP, DOWN, BETWEEN), 0)
    for way, nbytes in ways.items():
        source, _, target = way.partition(">")
        found[UP if source == CLIENT else DOWN if target == CLIENT else BETWEEN] += nbytes
    return {**found, BOTH_WAYS: found[UP] + found[DOWN]}


@dataclass(frozen=True)
class Entry:
    """One arm's program, and what it must show.

    units: of a trial, which is a step of what `build` makes. reference: makes a trial's outputs with plain PyTorch;
    None: they are not compared. floor_s: a trial cannot take less. predicted_s: of a trial, stated before. goes_on:
    a trial begins where the last one ended, warm-ups first; the reference, asked for each, must do so too.
    """

    arm: Arm
    build: Build
    units: int
    reference: Callable[[], Outputs] | None
    carries: tuple[Carries, ...] = ()
    floor_s: float = 0.0
    predicted_s: float | None = None
    warm_ups: int = 2
    bound: str = ""
    goes_on: bool = False


@dataclass(frozen=True)
class Setting:
    """What all entries of a contest share. shape: of the workload, for records."""

    workload: str
    unit: str
    shape: dict[str, float] = field(default_factory=dict)
    device: str = "cpu"


@dataclass(frozen=True)
class Result:
    """An entry's trials. busy_s: what the executors computed in one, by their own clocks; 0 for local PyTorch."""

    entry: Entry
    trials: list[Trial]
    busy_s: float = 0.0

    @property
    def seconds(self) -> list[float]:
        """Of each unit."""
        return [trial.seconds / self.entry.units for trial in self.trials]

    @property
    def cpu_s(self) -> list[float]:
        return [trial.cpu_s / self.entry.units for trial in self.trials]


def contest(
    report: Report,
    setting: Setting,
    entries: Sequence[Entry],
    pool: Executors,
    trials: int,
    rng: random.Random,
    clocks: bool = False,
) -> dict[str, Result]:
    """Trials of all entries in turns, checked one by one, as samples of the report; results by the arm's name.

    clocks: ask the executors' too, once for each entry, outside of the trials.

    Raises:
        NotAsSaid: an arm's session, outputs or bytes are not what it says.
        Impossible: faster than the link, or than the floor.
        ArmFailed: an arm failed; nothing is left out.
    """
    expected = {entry.arm.name: _expected(entry, trials) for entry in entries}
    with forked_each([(entry.arm, entry.build) for entry in entries], pool) as processes:
        _open_all(entries, processes, expected)
        acts = {
            entry.arm.name: lambda entry=entry, process=process: _trial(
                setting, entry, process, next(expected[entry.arm.name]), pool
            )
            for entry, process in zip(entries, processes, strict=True)
        }
        found = interleave(acts, trials, rng)
        busy = [_busy_s(process) if clocks else 0.0 for process in processes]
    results = {
        entry.arm.name: Result(entry, found[entry.arm.name], seconds)
        for entry, seconds in zip(entries, busy, strict=True)
    }
    for result in results.values():
        _sample(report, setting, result, pool)
    return results


def _open_all(
    entries: Sequence[Entry], processes: Sequence[ArmProcess], expected: dict[str, Iterator[Digests | None]]
) -> None:
    """All at once: nothing is timed yet."""

    def opened(entry: Entry, process: ArmProcess) -> None:
        outputs = expected[entry.arm.name]
        _compare(entry, process.open(entry.warm_ups), [next(outputs) for _ in range(entry.warm_ups)])

    with ThreadPoolExecutor(len(entries)) as opening:
        list(opening.map(opened, entries, processes))


def _trial(
    setting: Setting, entry: Entry, process: ArmProcess, expected: Digests | None, pool: Executors
) -> Trial:
    trial = process.step(0.0)
    _compare(entry, trial.digests, [expected])
    check(f"{setting.workload}, {entry.arm.name}", entry, trial, pool.rates.fastest)
    return trial


def check(what: str, entry: Entry, trial: Trial, link_bytes_per_s: float) -> None:
    """Raises NotAsSaid or Impossible if a trial cannot be one of this entry on such links."""
    if entry.arm.executors:
        if not trial.spent["ops"] and not trial.spent["whole_calls"]:
            raise NotAsSaid(f"{what}: it recorded no op: what ran, ran elsewhere")
        if trial.spent["reconnects"]:
            raise NotAsSaid(f"{what}: the link was cut in between")
    elif trial.nbytes:
        raise NotAsSaid(f"{what}: it is local, and sent something")
    problems = [problem for carries in entry.carries if (problem := carries.problem(trial.nbytes))]
    if problems:
        raise NotAsSaid(f"{what}: {'; '.join(problems)}")
    for way, nbytes in trial.nbytes.items():
        check_physics(f"{what}, {way}", nbytes, trial.seconds, link_bytes_per_s)
    check_not_before(what, trial.seconds * CLOCK_SLACK * 1e3, entry.floor_s * 1e3)


def _expected(entry: Entry, trials: int) -> Iterator[Digests | None]:
    """What each trial must give, warm-ups first. Computed now, so that nothing else runs while arms are timed."""
    if entry.reference is None:
        return itertools.repeat(None)
    if not entry.goes_on:
        return itertools.repeat(tuple(map(digest, entry.reference())))
    count = entry.warm_ups + trials
    return iter([tuple(map(digest, entry.reference())) for _ in range(count)])


def _compare(entry: Entry, digests: Sequence[str], expected: Sequence[Digests | None]) -> None:
    """Raises NotAsSaid if the outputs of some trials are not the expected ones."""
    known = [one for one in expected if one is not None]
    if len(known) < len(expected):
        return
    wanted = tuple(itertools.chain.from_iterable(known))
    if tuple(digests) != wanted:
        differ = sum(a != b for a, b in zip(digests, wanted, strict=False))
        raise NotAsSaid(
            f"{entry.arm.name}: {differ} of {len(wanted)} outputs differ from local PyTorch's ({len(digests)} came)"
        )


def _busy_s(process: ArmProcess) -> float:
    if not process.arm.executors:
        return 0.0
    before = process.busy_s()
    process.step(0.0)
    return process.busy_s() - before


def _sample(report: Report, setting: Setting, result: Result, pool: Executors) -> None:
    entry, trials = result.entry, result.trials
    local = not entry.arm.executors
    report.sample(
        workload=setting.workload,
        arm=entry.arm.name,
        link=link_record(pool),
        executors=entry.arm.executors,
        unit=setting.unit,
        units=entry.units,
        shape=setting.shape,
        seconds=[trial.seconds for trial in trials],
        cpu_s=[trial.cpu_s for trial in trials],
        nbytes={way: [trial.nbytes[way] for trial in trials] for way in trials[0].nbytes},
        transport="" if local else entry.arm.transport,
        device=setting.device,
        predicted_s=entry.predicted_s,
        floor_s=entry.floor_s or None,
        bound=entry.bound,
        identical=None if entry.reference is None else True,
    )


def link_record(pool: Executors) -> records.Link:
    """What lies between the ends of a pool."""
    return records.Link(
        by=pool.kind,
        gbit_per_s=pool.link.bytes_per_s * 8 / 1e9 or None,
        rtt_ms=pool.link.delay_s * 2e3 if pool.kind == "proxy" else None,
        carried_gbit_per_s=pool.rates.fastest * 8 / 1e9,
    )


def row(report: Report, setting: Setting, where: str, result: Result) -> float:
    """Milliseconds of a unit, as a row of the report; its median."""
    measure = f"{setting.workload}{', ' if where else ''}{where}"
    return report.row(measure, result.entry.arm.name, f"ms/{setting.unit}", [s * 1e3 for s in result.seconds])


def on_cpu(build: Build) -> Callable[[], Outputs]:
    """The reference of a program that runs as it is on any device; each call is one more trial."""
    made: list[Running] = []

    def reference() -> Outputs:
        if not made:
            torch.set_num_threads(1)
            made.append(build("cpu"))
            if made[0].prepare is not None:
                made[0].prepare(0.0)
        return made[0].step()

    return reference
