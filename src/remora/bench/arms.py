"""Arms: one workload in several ways at once, each in a process of its own, stepped in turn.

A session belongs to a process, and arms that take turns need one each that stays warm (bench/forks.py); the
workload's model is made once and shared until it is moved. What an arm says of itself is compared with what its
session is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from blake3 import blake3

from remora.bench.forks import Fork
from remora.bench.harness import NotAsSaid
from remora.bench.links import Executors
from remora.bench.netns import Traffic
from remora.bench.records import CLIENT, way
from remora.bench.workloads import Build, Outputs
from remora.plan.explain import Explanation, from_json
from remora.session.connect import current
from remora.session.pooled import PoolSession
from remora.session.session import Session

# As many for all, since steps build on each other: on two executors, what turns has been twice on each, and once calls
# are captured as a whole, which takes the second wait where a step is short, twice again.
WARM_UPS = 12
WARM_EVERY = (
    4  # steps, after which, and after the first, an arm waits until its calls are captured as they will be
)
WARM_S = 40.0
OPEN_S, STEP_S = 240.0, 90.0  # an arm that takes longer hangs: it is ended, and counts as failed


@dataclass(frozen=True)
class Arm:
    """policy: as `remora.connect` takes it; None: no placement, so one executor by itself, or none: local PyTorch.
    executors: how many of the pool. label: its name, where policy and executors do not say it."""

    policy: str | None
    executors: int
    label: str = ""
    run_ahead: bool = True
    transport: str = "websocket"

    @property
    def name(self) -> str:
        if self.label:
            return self.label
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

    nbytes: at the sockets, framing included, by way (bench/records.py).
    passed: what the kernel counted between the ends of the links; None where nobody counts.
    """

    seconds: float
    cpu_s: float
    digests: tuple[str, ...]
    spent: dict[str, int]
    passed: Traffic | None = None
    nbytes: dict[str, int] = field(default_factory=dict)

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

    def open(self, warm_ups: int = WARM_UPS) -> tuple[str, ...]:
        """Connects, builds the workload, and warms up; digests of those first steps.

        Raises:
            ArmFailed: with the arm's error.
            NotAsSaid: the session is not what the arm says.
        """
        opened = self._fork.ask("open", OPEN_S, warm_ups=warm_ups)
        wrong = differences(self.arm, self.pool.urls, opened["session"])
        if wrong:
            raise NotAsSaid(f"{self.arm.name}: {'; '.join(wrong)}")
        return tuple(opened["digests"])

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
        return Trial(**{**done, "digests": tuple(done["digests"])}, passed=passed)

    def busy_s(self) -> float:
        """What the executors have computed for this session so far, by their own clocks."""
        return float(self._fork.ask("busy", STEP_S)["seconds"])

    def explain(self) -> Explanation:
        return from_json(self._fork.ask("explain", STEP_S)["explanation"])

    @property
    def pid(self) -> int:
        return self._fork.pid

    def close(self) -> None:
        self._fork.close()


def differences(arm: Arm, urls: Sequence[str], session: dict[str, Any] | None) -> list[str]:
    """What of the arm's session is not as the arm says; session: as `_what_it_is` found it, None: there is none."""
    if session is None or not arm.executors:
        return (
            []
            if session is None and not arm.executors
            else ["it has a session"]
            if session
            else ["it is local"]
        )
    said = {
        "policy": arm.policy,
        "addresses": list(urls[: arm.executors]),
        "transports": [arm.transport] * arm.executors,
        "run_ahead": [arm.run_ahead] * arm.executors,
    }
    return [
        f"its {what} is {session[what]}, not {said[what]}" for what in said if session[what] != said[what]
    ]


@contextmanager
def forked(arms: Sequence[Arm], build: Build, pool: Executors) -> Iterator[list[ArmProcess]]:
    """A process for each arm, for as long as the context."""
    with forked_each([(arm, build) for arm in arms], pool) as processes:
        yield processes


@contextmanager
def forked_each(arms: Sequence[tuple[Arm, Build]], pool: Executors) -> Iterator[list[ArmProcess]]:
    """A process for each arm, with a program of its own, for as long as the context."""
    processes: list[ArmProcess] = []
    try:
        for arm, build in arms:
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

    def open(self, warm_ups: int) -> dict[str, Any]:
        torch.set_num_threads(1)
        import remora

        urls, ahead = self.pool.urls[: self.arm.executors], self.arm.run_ahead
        os.environ["REMORA_TRANSPORT"] = self.arm.transport
        if self.arm.policy is not None:
            remora.connect(urls, self.pool.token, placement=self.arm.policy, run_ahead=ahead)
        elif urls:
            remora.connect(urls[0], self.pool.token, run_ahead=ahead)
        self.running = self.build(self.arm.device)
        self.prepare(0.0)
        digests = []
        for number in range(1, warm_ups + 1):
            digests += [digest(tensor) for tensor in self.running.step()]
            if urls and (number == 1 or number % WARM_EVERY == 0):
                remora.wait_warm(WARM_S)
        return {"digests": digests, "session": _what_it_is(current())}

    def prepare(self, progress: float) -> None:
        """Leaves out a sync where there is nothing to do: it would be a program, and blind would take its turn."""
        if self.running.prepare is None:
            return
        self.running.prepare(progress)
        if self.arm.executors:
            torch.remora.synchronize()  # type: ignore[attr-defined]

    def step(self) -> dict[str, Any]:
        import remora

        before, ways = remora.stats(), _nbytes(current())
        cpu_s, started = time.process_time(), time.perf_counter()
        outputs: Outputs = self.running.step()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
        spent = remora.stats() - before
        after = _nbytes(current())
        return {
            "seconds": seconds,
            "cpu_s": cpu_s,
            "digests": [digest(tensor) for tensor in outputs],
            "spent": asdict(spent),
            "nbytes": {way: after[way] - ways.get(way, 0) for way in after},
        }

    def busy(self) -> dict[str, Any]:
        session = current()
        assert session is not None, "local PyTorch has no executors"
        moments = [session.mark(settle=True, index=at) for at in range(len(session.lanes))]
        for moment in moments:
            session.passed(moment, wait=True)
        return {"seconds": sum(moment.busy_s for moment in moments)}

    def explain(self) -> dict[str, Any]:
        import remora

        return {"explanation": remora.explain().to_json()}

    def close(self) -> None:
        import remora

        remora.disconnect()


def _what_it_is(session: Session | None) -> dict[str, Any] | None:
    if session is None:
        return None
    return {
        "policy": session.placement.policy.name if isinstance(session, PoolSession) else None,
        "addresses": [lane.transport.address for lane in session.lanes],
        "transports": [getattr(lane.transport, "mode", "") for lane in session.lanes],
        "run_ahead": [lane.ahead is not None for lane in session.lanes],
    }


def _nbytes(session: Session | None) -> dict[str, int]:
    """By way, so far."""
    found = {}
    for at, lane in enumerate(session.lanes if session is not None else ()):
        spent = lane.stats()
        found[way(CLIENT, at)], found[way(at, CLIENT)] = spent.bytes_sent, spent.bytes_received
    if isinstance(session, PoolSession):
        found |= {way(source, target): nbytes for (source, target), nbytes in session.peer_nbytes.items()}
    return found
