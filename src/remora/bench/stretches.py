"""A program in a process of its own, timed stretch by stretch and, if asked, recorded for the simulator."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from remora.bench.forks import Fork

STRETCHES = 3  # that are timed
WARM_S, RUN_S = 20.0, 120.0

Step = Callable[[], Any]


@dataclass(frozen=True)
class Program:
    """`make` builds it on the device and gives a step. steps: of a stretch, which ends with a wait for all of them.
    warm: steps before the first stretch, twice. policy: None: a lone executor's session."""

    name: str
    make: Callable[[], Step]
    steps: int
    warm: int
    executors: int = 1
    policy: str | None = None
    run_ahead: bool = True


class _Client:
    """What a fork does: one session, one program."""

    def __init__(self, program: Program, urls: Sequence[str], token: str | None, trace: Path | None) -> None:
        self.program, self.urls, self.token, self.trace = program, list(urls), token, trace

    def run(self) -> dict[str, Any]:
        """Seconds of each stretch."""
        torch.set_num_threads(1)
        import remora

        if self.trace is not None:
            os.environ["REMORA_RECORD"] = str(self.trace)
        program = self.program
        urls = self.urls[0] if program.policy is None else self.urls[: program.executors]
        remora.connect(urls, self.token, placement=program.policy, run_ahead=program.run_ahead)
        step = program.make()
        for _ in range(program.warm):
            step()
        remora.wait_warm(WARM_S)
        for _ in range(program.warm):
            step()
        torch.remora.synchronize()  # type: ignore[attr-defined]
        seconds = []
        for _ in range(STRETCHES):
            started = time.perf_counter()
            for _ in range(program.steps):
                step()
            torch.remora.synchronize()  # type: ignore[attr-defined]
            seconds.append(time.perf_counter() - started)
        remora.disconnect()
        return {"seconds": seconds}

    def close(self) -> None:
        return None


def timed(
    program: Program, urls: Sequence[str], token: str | None = None, trace: Path | None = None
) -> list[float]:
    """Seconds of each stretch, on these executors. trace: a file that the session is recorded in."""
    fork = Fork(program.name, lambda: _Client(program, urls, token, trace))
    try:
        found: list[float] = fork.ask("run", RUN_S)["seconds"]
    finally:
        fork.close()
    return found
