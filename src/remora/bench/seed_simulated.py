"""Part of the experiment `seed`: its arms at rates that no such machine carries, by the simulator.

Each arm is recorded once at each size, between two executors of this machine without a limit. Then links get a rate;
what a message costs beside its bytes, and what both ends compute, stays as it was recorded. The bytes are the link's
alone: a host with such a link is taken to have the processors for it. Rates that were measured are simulated too, so
that both can be compared.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from remora.bench import records, seed_arms
from remora.bench.contest import Setting
from remora.bench.harness import Report, check_physics
from remora.bench.seed_arms import KINDS, SPLIT, Kind
from remora.bench.stretches import STRETCHES, Program, timed
from remora.plan.devices import Link, Pool
from remora.plan.presets import ETHERNET_SHARE
from remora.sim.scenario import Scenario, learned, simulated

FEW_STEPS, FEW_FROM_TOKENS = 2, 32768  # of a trial of what moves, from that size on


@dataclass(frozen=True)
class Recorded:
    """units: steps of a trial."""

    kind: Kind
    tokens: int
    units: int
    trace: Path


@dataclass
class Simulated:
    """Median seconds of a step by arm, by size of the cache, at one rate."""

    gbit_per_s: float
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)


def measure(
    report: Report,
    urls: Sequence[str],
    rates: Sequence[float],
    sizes: Sequence[int],
    steps: Mapping[str, int],
    split_up_to: int,
) -> list[Simulated]:
    """Records every arm at every size on two executors without a limit, and simulates all of them at each rate.

    rates: Gbit/s. steps: of a trial, by arm.
    """
    report.say(
        "simulated: recorded here without a limit; links get the rate, messages and processors stay as they are here"
    )
    found = [Simulated(rate) for rate in rates]
    with tempfile.TemporaryDirectory(prefix="remora-seed-") as folder:
        for tokens in sizes:
            for recorded in _recorded(urls, Path(folder), tokens, steps, split_up_to):
                for at in found:
                    median_s = simulate(report, recorded, at.gbit_per_s)
                    at.seconds.setdefault(tokens, {})[recorded.kind.name] = median_s
    return found


def _recorded(
    urls: Sequence[str], folder: Path, tokens: int, steps: Mapping[str, int], split_up_to: int
) -> Iterator[Recorded]:
    for kind in KINDS:
        if kind is SPLIT and tokens > split_up_to:
            continue
        units = FEW_STEPS if kind.moves and tokens >= FEW_FROM_TOKENS else steps[kind.name]
        recorded = Recorded(kind, tokens, units, folder / f"{kind.name}-{tokens}.jsonl")
        timed(_program(recorded), urls, trace=recorded.trace)
        yield recorded


def _program(recorded: Recorded) -> Program:
    """Whose step is a trial."""
    entry = seed_arms.entry(recorded.kind, recorded.tokens, recorded.units)
    arm = entry.arm
    return Program(
        arm.name,
        lambda: entry.build(arm.device).step,
        steps=1,
        warm=entry.warm_ups,
        executors=arm.executors,
        policy=arm.policy,
        run_ahead=arm.run_ahead,
    )


def simulate(report: Report, recorded: Recorded, gbit_per_s: float) -> float:
    """Median seconds of a step at a rate, which becomes a simulated sample of the report.

    Raises:
        Impossible: faster than the link.
    """
    kind, tokens = recorded.kind, recorded.tokens
    link_bytes_per_s = ETHERNET_SHARE * gbit_per_s * 1e9 / 8
    pool = with_rate(learned(recorded.trace)[0].pool, link_bytes_per_s)
    found = simulated(recorded.trace, Scenario(pool=pool, policy=kind.arm().policy or ""))
    where = f"{gbit_per_s:g} Gbit/s, {tokens} tokens, simulated"
    check_physics(
        f"{kind.name}, {where}", found.outcome.pushed_nbytes, found.outcome.seconds, link_bytes_per_s
    )
    trials = found.stretches()[-STRETCHES:]
    setting = Setting("seed", "step", {"cache_tokens": tokens, "width": seed_arms.WIDTH})
    report.sample(
        workload=setting.workload,
        arm=kind.name,
        link=records.Link(by="model", gbit_per_s=gbit_per_s),
        executors=2,
        unit=setting.unit,
        units=recorded.units,
        shape=setting.shape,
        seconds=trials,
        how=records.SIMULATED,
    )
    step_s = [seconds / recorded.units for seconds in trials]
    report.row(f"seed, {where}", kind.name, "ms/step", [seconds * 1e3 for seconds in step_s])
    return statistics.median(step_s)


def with_rate(pool: Pool, bytes_per_s: float) -> Pool:
    """The same with links of that rate, and what each message costs beside its bytes as it is."""

    def at(link: Link) -> Link:
        return replace(link, bytes_per_s=bytes_per_s)

    return replace(
        pool, links={ends: at(link) for ends, link in pool.links.items()}, client=tuple(map(at, pool.client))
    )
