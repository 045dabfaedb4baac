"""What a workload is: made once on the CPU from a seed, then built on a device, then stepped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Outputs = Sequence[
    torch.Tensor
]  # on the CPU: what is compared, bit for bit, with the same step of the same workload


@dataclass(frozen=True)
class Running:
    """A workload on a device.

    step: what is timed: an ordinary piece of program that ends with its outputs on the CPU. prepare: before a step,
    untimed; is told how far through the trials it is, 0 to 1. None: there is nothing to do between steps.
    """

    step: Callable[[], Outputs]
    prepare: Callable[[float], None] | None = None


Build = Callable[[str], Running]  # on a device such as "cpu" or "remora:1"


@dataclass(frozen=True)
class Workload:
    """make: from whether it is the quick form to what builds it. A build may move what was made: one build a process.

    unit: what a step makes `units` of (`quick_units` in the quick form). wins: why a placement that knows meanings is
    expected to beat one that sees bytes alone, '' if it is not. memory_nbytes: a cap for each executor; 0: none.
    executors: how many it is for.
    """

    name: str
    about: str
    make: Callable[[bool], Build]
    unit: str = "step"
    units: int = 1
    quick_units: int = 1
    wins: str = ""
    memory_nbytes: int = 0
    executors: int = 2

    def count(self, quick: bool) -> int:
        return self.quick_units if quick else self.units


@contextmanager
def seeded(seed: int = 0) -> Any:
    """The global generator from a seed inside, as it was outside."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int, seed: int) -> torch.Tensor:
    """Below `high`; 0 is left out, since it pads."""
    return torch.randint(1, high, shape, generator=torch.Generator().manual_seed(seed))
