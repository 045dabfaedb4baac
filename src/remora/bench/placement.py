"""The experiment `placement`: every policy on every workload, on shaped links, against local and one executor.

For each workload, arms are forks that hold a session each (bench/arms.py) and take turns in random order. Three
parts: `policies`, all on two executors; `counts`, all on one and on three executors, compared and not timed; `duel`,
local, one executor and semantic, until the interval of their ratio is narrow.
bench/placement_bars.py judges.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from remora.bench import placement_bars, workloads
from remora.bench.arms import LOCAL, ONE, Arm, ArmProcess, Measured, forked
from remora.bench.forks import ArmFailed
from remora.bench.harness import Options, Report
from remora.bench.links import Executors, Link, executors
from remora.bench.workloads import Build, Workload
from remora.errors import UsageError

POLICIES = ("semantic", "data_aware", "least_loaded", "blind", "random", "split", "local", "explicit")
TRIALS, QUICK_TRIALS = 5, 3
DUEL, QUICK_DUEL = (15, 60, 25.0), (3, 9, 2.0)  # fewest trials, most, seconds
NARROW = 0.02  # of an interval, end to end
COUNTED = ("seed", "llama-decode", "t5-generate")  # compared on one and three executors too
QUICK = ("seed", "gpt2-decode", "deep-decode", "mlp-adam")


@dataclass
class Results:
    """What was measured of one workload, each part by arm, local first."""

    workload: Workload
    quick: bool
    link_bytes_per_s: float  # what a raw socket reached
    policies: dict[Arm, Measured] = field(default_factory=dict)
    counts: dict[Arm, Measured] = field(default_factory=dict)
    duel: dict[Arm, Measured] = field(default_factory=dict)

    @property
    def units(self) -> int:
        return self.workload.count(self.quick)


def run(options: Options, report: Report) -> None:
    """All parts of all chosen workloads, then the bars."""
    if options.url is not None:
        raise UsageError("placement starts executors of its own, on links of its own; leave --url out")
    names = options.workloads or (QUICK if options.quick else ())
    try:
        chosen = workloads.named(names)
    except ValueError as error:
        raise UsageError(str(error)) from None
    policies = _policies(options.policies)
    torch.set_num_threads(1)
    _quiet()
    rng = random.Random(options.seed)
    found: list[Results] = []
    for memory_nbytes in sorted({workload.memory_nbytes for workload in chosen}):
        group = [workload for workload in chosen if workload.memory_nbytes == memory_nbytes]
        memory = ("--memory", str(memory_nbytes)) if memory_nbytes else ()
        with executors(3, Link(), *memory) as pool:
            _say_link(report, pool)
            for workload in group:
                found.append(_measure(report, workload, policies, pool, options.quick, rng))
    placement_bars.judge(report, found, policies)


def _policies(asked: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [policy for policy in asked if policy not in POLICIES]
    if unknown:
        raise UsageError(f"there is no policy {', '.join(unknown)}; there is: {', '.join(POLICIES)}")
    return asked or POLICIES


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _say_link(report: Report, pool: Executors) -> None:
    report.say(pool.about)
    rates = {"client to executor": pool.rates.up, "executor to client": pool.rates.down}
    for way, rate in (rates | {"executor to executor": pool.rates.peers}).items():
        if rate is not None:
            report.row("raw socket", f"{way}, {pool.kind}", "Gbit/s", [rate * 8 / 1e9])


def _measure(
    report: Report,
    workload: Workload,
    policies: Sequence[str],
    pool: Executors,
    quick: bool,
    rng: random.Random,
) -> Results:
    report.say(f"{workload.name}: {workload.about}")
    build = workload.make(quick)
    results = Results(workload, quick, pool.rates.fastest)
    trials = QUICK_TRIALS if quick else TRIALS
    if workload.memory_nbytes:
        _measure_larger(report, results, build, policies, pool, rng)
        return results
    with forked([LOCAL, ONE, *(Arm(policy, 2) for policy in policies)], build, pool) as arms:
        results.policies = _rounds(report, arms, trials, rng)
    if workload.name in COUNTED[: 1 if quick else None]:
        for executors_ in (1, 3):
            with forked([LOCAL, *(Arm(policy, executors_) for policy in policies)], build, pool) as arms:
                results.counts |= _rounds(report, arms, 1, rng)
    if "semantic" in policies:
        alone = [Arm("semantic", 1)] if workload.name == placement_bars.DEEP else []
        with forked([LOCAL, ONE, Arm("semantic", 2), *alone], build, pool) as arms:
            results.duel = _duel(report, arms, quick, rng)
    del build
    gc.collect()
    return results


def _measure_larger(
    report: Report,
    results: Results,
    build: Build,
    policies: Sequence[str],
    pool: Executors,
    rng: random.Random,
) -> None:
    """One policy after the other: two sessions of it do not fit. `counts` is the pool that is too small."""
    executors_ = results.workload.executors
    for policy, part in (("semantic", results.policies), ("data_aware", results.duel)):
        if policy in policies:
            with forked([LOCAL, Arm(policy, executors_)], build, pool) as arms:
                part |= _rounds(report, arms, QUICK_TRIALS if results.quick else TRIALS, rng)
    if "semantic" in policies:
        with forked([Arm("semantic", executors_ - 1)], build, pool) as arms:
            results.counts = _rounds(report, arms, 0, rng)


class _Turns:
    """Arms that take turns. One that fails ends there, is named in the report, and misses a bar later."""

    def __init__(self, report: Report, arms: Sequence[ArmProcess], rng: random.Random) -> None:
        self.report, self.arms, self.rng = report, list(arms), rng
        self.measured = {process.arm: Measured(process.arm) for process in arms}
        for process in arms:
            self._attempt(process, "open")

    def round(self, progress: float) -> None:
        """A step of every arm, in a new random order."""
        self.rng.shuffle(self.arms)
        for process in self.arms:
            self._attempt(process, "step", progress)

    def explain(self) -> None:
        for process in self.arms:
            if process.arm.policy is not None:
                self._attempt(process, "explain")

    def _attempt(self, process: ArmProcess, what: str, progress: float = 0.0) -> None:
        of = self.measured[process.arm]
        if of.error:
            return
        try:
            if what == "open":
                of.first = process.open()
            elif what == "step":
                of.trials.append(process.step(progress))
            else:
                of.explanation = process.explain()
        except ArmFailed as error:
            of.error = str(error)
            self.report.say(f"  {process.arm.name} failed to {what}: {error}")


def _rounds(
    report: Report, arms: Sequence[ArmProcess], trials: int, rng: random.Random
) -> dict[Arm, Measured]:
    """As many turns of every arm as asked; with more than one, explanations too."""
    turns = _Turns(report, arms, rng)
    for trial in range(trials):
        turns.round(trial / max(trials - 1, 1))
    if trials > 1:
        turns.explain()
    return turns.measured


def _duel(report: Report, arms: Sequence[ArmProcess], quick: bool, rng: random.Random) -> dict[Arm, Measured]:
    """Turns until the ratio's interval is narrow, or time is up. What stops it is the width, never the value."""
    fewest, most, within_s = QUICK_DUEL if quick else DUEL
    turns = _Turns(report, arms, rng)
    started = time.monotonic()
    for trial in range(most):
        turns.round(trial / (most - 1))
        spent_s = time.monotonic() - started
        if trial + 1 >= fewest and (spent_s > within_s or placement_bars.narrow(turns.measured, NARROW)):
            break
    turns.explain()
    return turns.measured
