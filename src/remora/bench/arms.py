"""Arms: one workload under several placements at once, each in a process of its own, stepped in turn.

A session belongs to a process, and arms that take turns need one each that stays warm (bench/forks.py); the
workload's model is made once and shared until it is moved.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from blake3 import blake3

from remora.bench.forks import Fork
from remora.bench.links import Executors
from remora.bench.netns import Traffic
from remora.bench.workloads import Build, Outputs
from remora.plan.explain import Explanation, from_json

# Steps before the first timed one, by parts: as many for all, since steps build on each other. In the first part, what
# turns has been twice on each of two executors; after each, arms wait until calls are captured as they will be.
_WARM_UPS = (4, 2, 2)
WARM_S = 40.0
OPEN_S, STEP_S = 240.0, 90.0  # an arm that takes longer hangs: it is ended, and counts as failed


@dataclass(frozen=True)
class Arm:
    """policy: as `remora.connect` takes it; None: no placement, so one executor by itself, or none: local PyTorch.
    executors: how many of the pool."""

    policy: str | None
    executors: int

    @property
    def name(self) -> str:
        if not self.executors:
            return "local"
        return "one executor" if self.policy is None else f"{self.policy} on {self.executors}"

    @property
    def device(self) -> str:
        """explicit: the whole program on the last executor, by its index."""
        if not self.executors:
            return "cpu"
        return f"remora:{self.executors - 1}" if self.policy == "explicit" else "remora"


LOCAL, ONE = Arm(None, 0), Arm(None, 1)


@dataclass(frozen=True)
class Trial:
    """One step. cpu_s: of the client's process. digests: of each output. spent: what `remora.stats()` counted.

    passed: what the kernel counted between the ends of the links; None where nobody counts.
    """

    seconds: float
    cpu_s: float
    digests: tuple[str, ...]
    spent: dict[str, int]
    passed: Traffic | None = None

    def between_executors(self) -> float:
        """Bytes between executors: the kernel's count, else the session's own; not a number if it has none."""
        if self.passed is not None:
            return self.passed.between_executors
        return self.spent.get("peer_bytes", float("nan"))


@dataclass
class Measured:
    """All of one arm. first: digests of the steps that warmed it up. error: why there is no more, or ''."""

    arm: Arm
    first: tuple[str, ...] = ()
    trials: list[Trial] = field(default_factory=list)
    explanation: Explanation | None = None
    error: str = ""


class ArmProcess:
    """A fork that holds one arm's session and workload. Blocking; one request at a time."""

    def __init__(self, arm: Arm, build: Build, pool: Executors) -> None:
        self.arm, self.pool = arm, pool
        self._fork = Fork(arm.name, lambda: _Session(arm, build, pool))

    def open(self) -> tuple[str, ...]:
        """Connects, builds the workload, and warms up; digests of those first steps."""
        return tuple(self._fork.ask("open", OPEN_S)["digests"])

    def step(self, progress: float) -> Trial:
        """One step, timed; `progress` as in Running.prepare.

        Raises:
            ArmFailed: with the arm's error.
            Impossible: the links carried more than they can.
        """
        self._fork.ask("prepare", OPEN_S, progress=progress)
        before = self.pool.traffic() if self.pool.traffic else None
        done = self._fork.ask("step", STEP_S)
        passed = None
        if self.pool.traffic and before is not None:
            passed = self.pool.traffic() - before
            self.pool.check(self.arm.name, passed, done["seconds"])
        return Trial(done["seconds"], done["cpu_s"], tuple(done["digests"]), done["spent"], passed)

    def explain(self) -> Explanation:
        return from_json(self._fork.ask("explain", STEP_S)["explanation"])

    @property
    def pid(self) -> int:
        return self._fork.pid

    def close(self) -> None:
        self._fork.close()


@contextmanager
def forked(arms: Sequence[Arm], build: Build, pool: Executors) -> Iterator[list[ArmProcess]]:
    """A process for each arm, for as long as the context."""
    processes: list[ArmProcess] = []
    try:
        for arm in arms:
            processes.append(ArmProcess(arm, build, pool))
        yield processes
    finally:
        for process in processes:
            process.close()


def digest(tensor: torch.Tensor) -> str:
    """Of dtype, shape and every bit."""
    bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {list(tensor.shape)} {blake3(memoryview(bits)).hexdigest(16)}"


class _Session:
    """What an arm's process does."""

    def __init__(self, arm: Arm, build: Build, pool: Executors) -> None:
        self.arm, self.build, self.pool = arm, build, pool

    def open(self) -> dict[str, Any]:
        torch.set_num_threads(1)
        import remora

        urls = self.pool.urls[: self.arm.executors]
        if self.arm.policy is not None:
            remora.connect(urls, self.pool.token, placement=self.arm.policy)
        elif urls:
            remora.connect(urls[0], self.pool.token)
        self.running = self.build(self.arm.device)
        self.prepare(0.0)
        digests = []
        for steps in _WARM_UPS:
            digests += [digest(tensor) for _ in range(steps) for tensor in self.running.step()]
            if urls:
                remora.wait_warm(WARM_S)
        return {"digests": digests}

    def prepare(self, progress: float) -> None:
        """Leaves out a sync where there is nothing to do: it would be a program, and blind would take its turn."""
        if self.running.prepare is None:
            return
        self.running.prepare(progress)
        if self.arm.executors:
            torch.remora.synchronize()  # type: ignore[attr-defined]

    def step(self) -> dict[str, Any]:
        import remora

        before = remora.stats()
        cpu_s, started = time.process_time(), time.perf_counter()
        outputs: Outputs = self.running.step()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
        return {
            "seconds": seconds,
            "cpu_s": cpu_s,
            "digests": [digest(tensor) for tensor in outputs],
            "spent": asdict(remora.stats() - before),
        }

    def explain(self) -> dict[str, Any]:
        import remora

        return {"explanation": remora.explain().to_json()}

    def close(self) -> None:
        import remora

        remora.disconnect()
