"""Everything that Remora changes in PyTorch itself, each with the reason and a probe that says whether it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from remora.device import engine, optimizers


@dataclass(frozen=True)
class Patch:
    """apply: idempotent. probe: returns None when the patch does what it is for, else what is wrong."""

    name: str
    reason: str
    apply: Callable[[], None]
    probe: Callable[[], str | None]


def _swap_parameters() -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)


def _probe_swap() -> str | None:
    first, second = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    both = torch.nn.Sequential(first, second).to(torch.float64)
    return None if both[0].weight is both[1].weight else "Module.to() parts tied parameters"


PATCHES = (
    Patch(
        "foreach-optimizers",
        "optimizers run a row per parameter for tensor classes that they were not told of",
        optimizers.install,
        optimizers.probe,
    ),
    Patch(
        "single-threaded-backward",
        "the autograd engine's threads, and errors on their way out of it, end the process for a device in Python",
        engine.install,
        engine.probe,
    ),
    Patch(
        "swap-module-parameters",
        "Module.to() otherwise replaces parameters one by one, and tied weights come apart",
        _swap_parameters,
        _probe_swap,
    ),
)


def probes() -> list[tuple[str, bool, str]]:
    """Name, whether it holds, and detail, of every patch."""
    results = []
    for patch in PATCHES:
        wrong = patch.probe()
        results.append((patch.name, wrong is None, wrong or patch.reason))
    return results
