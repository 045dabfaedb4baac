"""What every experiment shares: trials in random order, spreads, bars, the physics check, the report."""

from __future__ import annotations

import importlib.metadata
import operator
import platform
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from remora.bench import records
from remora.bench.intervals import Interval, of_means, of_median

T = TypeVar("T")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    "==": operator.eq,
}
CLOCK_SLACK = 1.25  # two measurements of one link differ by this much on a busy machine


class Impossible(Exception):
    """A measurement that cannot be true: the bench is wrong, not the program."""


class NotAsSaid(Impossible):
    """A run that was not what its arm says: another policy, another transport, other bytes, other values."""


@dataclass(frozen=True)
class Options:
    """What the command line asks of an experiment. url: None starts an executor of its own.

    only: one architecture of `zoo`, op of `compat`, program of `semantics`. write: the file whose table `compat` makes
    anew, the folder of the golden graphs of `semantics`.
    workloads, policies: of `placement`; none: all. rtts: of `decode`, ms, ascending; with some it measures run-ahead.
    executors: of `seed`: addresses on hosts of their own; none: it starts some. rates: of `seed`, Gbit/s; none: all.
    """

    quick: bool = False
    url: str | None = None
    seed: int = 0
    only: str | None = None
    write: Path | None = None
    workloads: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    rtts: tuple[float, ...] = ()
    executors: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """One arm of one measure: median, smallest and largest of the trials, and the median's 95 % interval."""

    measure: str
    arm: str
    unit: str
    median: float
    low: float
    high: float
    trials: int
    low95: float
    high95: float


@dataclass(frozen=True)
class Bar:
    """A number that must hold."""

    name: str
    value: float
    op: str
    bar: float

    @property
    def ok(self) -> bool:
        return COMPARE[self.op](self.value, self.bar)


@dataclass
class Report:
    """The rows and bars of one run, in the order in which they were measured."""

    experiment: str
    rows: list[Row] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    samples: list[records.Sample] = field(default_factory=list)
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    started: float = field(default_factory=time.perf_counter)
    began: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def say(self, text: str) -> None:
        """One line of progress on stderr."""
        print(f"[{time.perf_counter() - self.started:5.1f} s] {text}", file=sys.stderr, flush=True)

    def row(self, measure: str, arm: str, unit: str, values: Sequence[float]) -> float:
        """Adds a row; returns its median."""
        found = of_median(values)
        self.rows.append(
            Row(
                measure,
                arm,
                unit,
                found.median,
                min(values),
                max(values),
                found.trials,
                found.low,
                found.high,
            )
        )
        return found.median

    def ratio(
        self, measure: str, arm: str, numerators: Sequence[float], denominators: Sequence[float]
    ) -> Interval:
        """Adds a row: what whole runs of one arm took over those of another, with its bootstrap interval."""
        found = of_means(numerators, denominators)
        ends = min(numerators) / max(denominators), max(numerators) / min(denominators)
        self.rows.append(Row(measure, arm, "x", found.median, *ends, found.trials, found.low, found.high))
        return found

    def bar(self, name: str, value: float, op: str, bar: float) -> None:
        bar_ = Bar(name, value, op, bar)
        self.bars.append(bar_)
        self.say(f"{'ok    ' if bar_.ok else 'MISSED'} {name}: {value:.4g} {op} {bar:.4g}")

    def sample(self, **fields: Any) -> records.Sample:
        """Adds all trials of an arm; fields: of records.Sample, but for those that say which run it is."""
        sample = records.Sample(run=self.run, experiment=self.experiment, **fields)
        self.samples.append(sample)
        return sample

    @property
    def ok(self) -> bool:
        return all(bar.ok for bar in self.bars)

    def as_records(self, command: str, options: Options) -> list[records.Record]:
        """All of it as lines of a file of results; command: what was run."""
        which = {"run": self.run, "experiment": self.experiment}
        found = versions()
        run = records.Run(
            **which,
            command=command,
            commit=found.pop("commit"),
            started=self.began,
            versions=found,
            seed=options.seed,
            quick=options.quick,
        )
        rows = [
            records.Row(
                **which, **{k: _finite(v) if isinstance(v, float) else v for k, v in asdict(row).items()}
            )
            for row in self.rows
        ]
        bars = [
            records.Bar(**which, **{**asdict(bar), "value": _finite(bar.value)}, ok=bar.ok)
            for bar in self.bars
        ]
        return [run, *self.samples, *rows, *bars]

    def content(self) -> dict[str, Any]:
        """What the JSON line holds."""
        return {
            "experiment": self.experiment,
            "rows": [asdict(row) for row in self.rows],
            "bars": [{**asdict(bar), "value": _finite(bar.value), "ok": bar.ok} for bar in self.bars],
            "versions": versions(),
        }


def _finite(value: float) -> float | None:
    """JSON has no word for what is not a number."""
    return value if isfinite(value) else None


def interleave(arms: Mapping[str, Callable[[], T]], trials: int, rng: random.Random) -> dict[str, list[T]]:
    """Runs every arm `trials` times, in a new random order each time, so that drift falls on all alike."""
    results: dict[str, list[T]] = {name: [] for name in arms}
    for _ in range(trials):
        order = list(arms)
        rng.shuffle(order)
        for name in order:
            results[name].append(arms[name]())
    return results


def check_physics(what: str, nbytes: float, seconds: float, link_bytes_per_s: float) -> None:
    """Raises Impossible if the bytes came faster than the link carries them."""
    if nbytes > seconds * link_bytes_per_s * CLOCK_SLACK:
        raise Impossible(
            f"{what}: {nbytes:.0f} bytes in {seconds:.4g} s is {nbytes / max(seconds, 1e-9) / 1e9:.2f} GB/s, "
            f"but the link carries {link_bytes_per_s / 1e9:.2f} GB/s"
        )


def versions() -> dict[str, str]:
    """What was measured, and on what."""
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "remora"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return {**found, "commit": _commit(), "machine": f"{platform.system()} {platform.machine()}"}


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        done = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if done.returncode:
        return "unknown"
    return done.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
