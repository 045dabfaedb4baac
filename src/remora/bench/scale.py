"""The experiment `scale`: how cost grows with one size at a time: depth, width, context, batch, clients, executors.

Greedy decode of a small Llama. For each point local PyTorch and an executor take turns; with several clients as many
local programs run at once as there are clients, each in a process of its own.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from remora.bench import mode_arms, models
from remora.bench.arms import LOCAL, Arm, ArmProcess, Trial, digest, forked_each
from remora.bench.contest import BOTH_WAYS, carried, link_record
from remora.bench.harness import NotAsSaid, Options, Report, interleave
from remora.bench.links import Executors, executors
from remora.bench.mode_arms import SEMANTIC

TOKENS, QUICK_TOKENS = 32, 8
TRIALS, QUICK_TRIALS = 5, 3
VOCABULARY = 512
OF_THE_MODEL = ("layers", "width", "context", "batch")
GROWTH = 2.0  # remote may cost at most so much more of local at the largest size than at the smallest


@dataclass(frozen=True)
class Point:
    """One size of everything."""

    layers: int = 4
    width: int = 64
    context: int = 16
    batch: int = 1
    clients: int = 1
    executors: int = 1

    def shape(self) -> dict[str, float]:
        names = ("layers", "width", "context", "batch", "clients", "executors")
        return {name: float(getattr(self, name)) for name in names}


BASE = Point()
AXES: dict[str, tuple[int, ...]] = {
    "layers": (2, 4, 8, 16, 32),
    "width": (64, 256, 1024),
    "context": (16, 256, 1024, 4096),
    "batch": (1, 4, 16),
    "clients": (1, 2, 4),
    "executors": (1, 2, 3),
}
QUICK_AXES: dict[str, tuple[int, ...]] = {
    "layers": (2, 8),
    "width": (64, 256),
    "context": (16, 256),
    "batch": (1, 4),
    "clients": (1, 2),
    "executors": (1, 2),
}


@dataclass(frozen=True)
class Cost:
    """Medians of a point. nbytes: both ways and between executors, of a token of a client."""

    local_ms: float
    remote_ms: float
    client_cpu_ms: float
    nbytes: float


def run(options: Options, report: Report) -> None:
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    axes = QUICK_AXES if options.quick else AXES
    tokens, trials = (QUICK_TOKENS, QUICK_TRIALS) if options.quick else (TOKENS, TRIALS)
    most = max(axes["executors"])
    known: dict[Point, Cost] = {}
    with executors(most) as pool:
        for axis, sizes in axes.items():
            costs = {}
            for size in sizes:
                point = replace(BASE, **{axis: size})
                if point not in known:
                    known[point] = measured(report, point, pool, tokens, trials, rng)
                costs[size] = known[point]
            judge(report, axis, costs)


def measured(
    report: Report, point: Point, pool: Executors, tokens: int, trials: int, rng: random.Random
) -> Cost:
    """Both arms of a point, in turns.

    Raises:
        NotAsSaid: an output differs.
        ArmFailed: a client failed.
    """
    model = models.llama(point.layers, point.width, inner=2 * point.width, vocabulary=VOCABULARY)
    ids = models.prompt(point.context, point.batch, VOCABULARY)
    expected = tuple(map(digest, mode_arms.plain(model.to, ids, tokens)))
    build = mode_arms.build_of(SEMANTIC, model.to, ids, tokens)
    remote = Arm(None if point.executors == 1 else "semantic", point.executors, "remote")
    arms = {"local": [LOCAL] * point.clients, "remote": [remote] * point.clients}
    with forked_each([(arm, build) for each in arms.values() for arm in each], pool) as processes:
        sides = {"local": processes[: point.clients], "remote": processes[point.clients :]}
        for process in processes:
            _compare(process.arm, process.open(), expected)
        acts = {name: (lambda side=side: _at_once(side)) for name, side in sides.items()}
        found = interleave(acts, trials, rng)
    for name, rounds in found.items():
        for trial in (trial for each in rounds for trial in each):
            _compare(arms[name][0], trial.digests, expected)
    return _recorded(report, point, pool, tokens, found)


def _at_once(side: Sequence[ArmProcess]) -> list[Trial]:
    """A step of each, all at the same time."""
    with ThreadPoolExecutor(len(side)) as asking:
        return list(asking.map(lambda process: process.step(0.0), side))


def _compare(arm: Arm, digests: Sequence[str], expected: tuple[str, ...]) -> None:
    if set(digests) != set(expected):
        raise NotAsSaid(f"{arm.name}: outputs differ from local PyTorch's")


def _recorded(
    report: Report, point: Point, pool: Executors, tokens: int, found: dict[str, list[list[Trial]]]
) -> Cost:
    for name, rounds in found.items():
        trials = [trial for each in rounds for trial in each]
        report.sample(
            workload="small Llama",
            arm=name,
            link=link_record(pool),
            executors=point.executors if name == "remote" else 0,
            unit="token",
            units=tokens,
            shape=point.shape(),
            seconds=[trial.seconds for trial in trials],
            cpu_s=[trial.cpu_s for trial in trials],
            nbytes={way: [trial.nbytes.get(way, 0) for trial in trials] for way in trials[0].nbytes},
            transport="websocket" if name == "remote" else "",
            identical=True,
        )
    medians = {
        name: statistics.median(trial.seconds for each in rounds for trial in each) * 1e3 / tokens
        for name, rounds in found.items()
    }
    remote = [trial for each in found["remote"] for trial in each]
    cpu_ms = statistics.median(trial.cpu_s for trial in remote) * 1e3 / tokens
    nbytes = [sum(carried(trial.nbytes).values()) - carried(trial.nbytes)[BOTH_WAYS] for trial in remote]
    return Cost(medians["local"], medians["remote"], cpu_ms, statistics.median(nbytes) / tokens)


def judge(report: Report, axis: str, costs: dict[int, Cost]) -> None:
    """Rows of an axis: what each size costs, over local."""
    for size, cost in costs.items():
        where = f"{axis} {size}"
        report.row(where, "remote / local", "x", [cost.remote_ms / cost.local_ms])
        report.row(where, "local", "ms/token", [cost.local_ms])
        report.row(where, "remote", "ms/token", [cost.remote_ms])
        report.row(f"{where}: client CPU", "remote", "ms/token", [cost.client_cpu_ms])
        report.row(f"{where}: on the wire", "remote", "B/token", [cost.nbytes])
    if axis in OF_THE_MODEL:
        growth = grown(*(costs[size] for size in (min(costs), max(costs))))
        report.bar(f"{axis}: remote / local at the largest, over the smallest", growth, "<=", GROWTH)


def grown(smallest: Cost, largest: Cost) -> float:
    """How much faster the remote cost grows than the local one."""
    return (largest.remote_ms / largest.local_ms) / (smallest.remote_ms / smallest.local_ms)
