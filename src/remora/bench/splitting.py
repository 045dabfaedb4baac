"""What `prefill`, `vision` and `multimodal` share: a forward pass on two executors against one, each arm a fork that
stays warm.

The ceiling is measured first: two plain processes that compute half of it each (half the batch, one of two branches),
at the same time, against one that computes all of it. What two executors reach is bounded by it, and by what the client
and the links take beside them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from remora.bench import intervals
from remora.bench.forks import Fork
from remora.bench.harness import Options, Report
from remora.bench.links import Executors, executors

TRIALS, QUICK_TRIALS = 9, 3
WARM_UPS = 3  # what has to be copied goes, and plans settle
SPEEDUP_BAR, NEVER_WORSE_BAR = 1.6, 0.98
ANSWER_S = 300.0


Inputs = tuple[torch.Tensor, ...]
Outputs = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """A forward pass. make: model and inputs on the CPU, from a seed. step: what has to be equal to the bit on every
    arm, and what has to be close; both on the CPU when it returns. tolerance: of what is close, absolute. half: one of
    its two halves, by number; None: one half of the batch."""

    name: str
    make: Callable[[], tuple[Any, Inputs]]
    step: Callable[[Any, Inputs], Outputs]
    tolerance: float = 0.0
    half: Callable[[Any, Inputs, int], object] | None = None


@dataclass(frozen=True)
class Arm:
    """executors: how many; 0: local. passes: as `remora.connect` takes them."""

    name: str
    executors: int
    passes: str = "none"


LOCAL, ONE = Arm("local", 0), Arm("one executor", 1)
APART, CHOSEN = Arm("two, no passes", 2), Arm("two", 2, "all")


def measure(
    report: Report,
    options: Options,
    subject: Subject,
    more: Sequence[Arm] = (),
    speedup_bar: float | None = SPEEDUP_BAR,
) -> Mapping[str, list[float]]:
    """Times every arm in turn; rows, and the bars that hold for any subject. Returns seconds by arm.

    Args:
        speedup_bar: of two executors over one; None: nothing is asked of it.
    """
    arms = [LOCAL, ONE, APART, CHOSEN, *more]
    trials = QUICK_TRIALS if options.quick else TRIALS
    rng = random.Random(options.seed)
    model, inputs = subject.make()
    with torch.no_grad():
        expected = subject.step(model, inputs)
    with ExitStack() as stack:
        pool = stack.enter_context(executors(2, None))
        forks: dict[str, Fork] = {}
        for arm in arms:

            def made(arm: Arm = arm) -> _Session:
                return _Session(arm, subject, model, inputs, expected, pool)

            forks[arm.name] = fork = Fork(arm.name, made)
            stack.callback(fork.close)
            fork.ask("open", ANSWER_S)
            report.say(f"{subject.name}: {arm.name} is warm")
        ceiling = _ceiling(report, subject, model, inputs, expected, pool, trials)
        seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
        differ, worst = 0, 0.0
        for _ in range(trials):
            order = list(forks)
            rng.shuffle(order)
            for name in order:
                done = forks[name].ask("step", ANSWER_S)
                seconds[name].append(done["seconds"])
                differ += not done["equal"]
                worst = max(worst, done["difference"])
        for name in [arm.name for arm in arms if arm.passes != "none"]:
            report.say(f"{subject.name}, {name}: {forks[name].ask('chosen', ANSWER_S)['text']}")
    for name, values in seconds.items():
        report.row(subject.name, name, "ms", [1e3 * value for value in values])
    report.bar(f"{subject.name}: steps whose exact outputs differ from local", differ, "==", 0)
    report.bar(f"{subject.name}: largest difference of an output from local", worst, "<=", subject.tolerance)
    ratio = intervals.of_ratio(seconds[ONE.name], seconds[CHOSEN.name])
    report.row(f"{subject.name}: throughput, two / one", CHOSEN.name, "x", _ratios(seconds, ONE, CHOSEN))
    if speedup_bar is not None:
        report.bar(
            f"{subject.name}: throughput, two / one [{ratio.low:.2f}, {ratio.high:.2f}], ceiling {ceiling:.2f}",
            ratio.median,
            ">=",
            speedup_bar,
        )
    against = intervals.of_ratio(seconds[APART.name], seconds[CHOSEN.name])
    report.bar(f"{subject.name}: without passes / with them, low end", against.low, ">=", NEVER_WORSE_BAR)
    return seconds


def _ratios(seconds: Mapping[str, Sequence[float]], above: Arm, below: Arm) -> list[float]:
    return [a / b for a, b in zip(seconds[above.name], seconds[below.name], strict=True)]


def _ceiling(
    report: Report,
    subject: Subject,
    model: Any,
    inputs: Inputs,
    expected: Outputs,
    pool: Executors,
    trials: int,
) -> float:
    """How much faster two plain processes are than one."""
    with ExitStack() as stack:
        halves = []
        for at in range(2):
            fork = Fork(f"half {at}", lambda: _Session(LOCAL, subject, model, inputs, expected, pool))
            stack.callback(fork.close)
            fork.ask("half", ANSWER_S, at=at)
            halves.append(fork)
        asking = stack.enter_context(ThreadPoolExecutor(2))
        ratios = []
        for _ in range(max(2, trials // 2)):
            whole = halves[0].ask("step", ANSWER_S)["seconds"]
            both = asking.map(lambda at: halves[at].ask("half", ANSWER_S, at=at)["seconds"], range(2))
            ratios.append(whole / max(both))
    return report.row(f"{subject.name}: ceiling", "two plain processes / one", "x", ratios)


class _Session:
    """What an arm's process does."""

    def __init__(
        self,
        arm: Arm,
        subject: Subject,
        model: Any,
        inputs: Inputs,
        expected: Outputs,
        pool: Executors,
    ) -> None:
        torch.set_num_threads(1)
        self.arm, self.subject, self.model, self.inputs = arm, subject, model, inputs
        self.expected, self.pool = expected, pool

    def open(self) -> None:
        import remora

        if self.arm.executors == 1:
            remora.connect(self.pool.urls[0], self.pool.token)
        elif self.arm.executors:
            remora.connect(self.pool.urls[: self.arm.executors], self.pool.token, passes=self.arm.passes)
        if self.arm.executors:
            self.model, self.inputs = self.model.to("remora"), tuple(one.to("remora") for one in self.inputs)
        for _ in range(WARM_UPS):
            self.step()

    def step(self) -> dict[str, Any]:
        started = time.perf_counter()
        with torch.no_grad():
            exact, close = self.subject.step(self.model, self.inputs)
        if self.arm.executors:
            torch.remora.synchronize()  # type: ignore[attr-defined]
        seconds = time.perf_counter() - started
        difference = (close - self.expected[1]).abs().max().item() if close.numel() else 0.0
        return {
            "seconds": seconds,
            "equal": torch.equal(exact, self.expected[0]),
            "difference": difference,
        }

    def half(self, at: int) -> dict[str, Any]:
        started = time.perf_counter()
        with torch.no_grad():
            if self.subject.half is not None:
                self.subject.half(self.model, self.inputs, at)
            else:
                count = len(self.inputs[0]) // 2
                self.subject.step(
                    self.model, tuple(one[at * count : (at + 1) * count] for one in self.inputs)
                )
        return {"seconds": time.perf_counter() - started}

    def chosen(self) -> dict[str, Any]:
        """What the passes did to the plan that ran last."""
        import remora

        return {"text": "; ".join(map(str, remora.explain().passes)) or "no pass had anything to propose"}

    def close(self) -> None:
        import remora

        remora.disconnect()
