"""Everything that Remora changes in PyTorch itself, each with the reason and a probe that says whether it holds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import graph

from remora.device.sink import bound
from remora.device.tensor import RemoraTensor


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


def _single_threaded_backward() -> None:
    run = graph._engine_run_backward
    if hasattr(run, "_remora"):
        return

    @functools.wraps(run)
    def run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        # with a session, even a loss on the CPU may come from remora tensors
        used = bound.recorder is not None or bound.ended is not None
        if used or any(isinstance(output, RemoraTensor) for output in outputs):
            with torch.autograd.set_multithreading_enabled(False):
                return run(outputs, *args, **kwargs)
        return run(outputs, *args, **kwargs)

    run_backward._remora = True  # type: ignore[attr-defined]
    graph._engine_run_backward = run_backward
    torch.autograd._engine_run_backward = run_backward  # type: ignore[attr-defined]


def _probe_backward() -> str | None:
    for owner in (graph, torch.autograd):
        if not hasattr(getattr(owner, "_engine_run_backward", None), "_remora"):
            return f"{owner.__name__} has no _engine_run_backward that could be replaced"
    return None


PATCHES = (
    Patch(
        "single-threaded-backward",
        "the autograd engine's threads for a device without a C++ guard end the process",
        _single_threaded_backward,
        _probe_backward,
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
