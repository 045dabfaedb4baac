"""Everything that Remora changes in PyTorch itself, each with the reason and a probe that says whether it holds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import graph

from remora.device import coexist, saving, subclass
from remora.device.tensor import RemoraTensor


@dataclass(frozen=True)
class Patch:
    """apply: idempotent. probe: returns None when the patch does what it is for, else what is wrong."""

    name: str
    reason: str
    apply: Callable[[], None]
    probe: Callable[[], str | None]


def _single_threaded_backward() -> None:
    run = graph._engine_run_backward
    if hasattr(run, "_remora"):
        return

    @functools.wraps(run)
    def run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(output, RemoraTensor) for output in outputs):
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
        "Module.to() otherwise replaces parameters that change between devices, and tied weights come apart",
        coexist.replace_module_apply,
        coexist.probe_module_apply,
    ),
    Patch(
        "accelerator-when-asked",
        "a registered device is the accelerator of programs that never asked for it, too",
        coexist.replace_accelerator,
        coexist.probe_accelerator,
    ),
    Patch(
        "pinning-copies-nothing",
        "PyTorch would pin memory by an allocator that a device in Python cannot have",
        coexist.replace_pinning,
        coexist.probe_pinning,
    ),
    Patch(
        "conjugate-bits",
        "torch.load marks a tensor as conjugated, which a tensor here could not act upon",
        saving.replace_set_metadata,
        saving.probe_set_metadata,
    ),
    Patch(
        "tensor-subclasses",
        "a subclass made around a remora tensor has to be a remora tensor too",
        subclass.replace_make_subclass,
        subclass.probe_make_subclass,
    ),
    Patch(
        "storages-to-remora",
        "the map_location function of torch.load may move a storage by itself",
        saving.replace_storage_to,
        saving.probe_storage_to,
    ),
    Patch(
        "dlpack-capsules",
        "a capsule of a remora tensor would hold a null pointer",
        saving.replace_to_dlpack,
        saving.probe_to_dlpack,
    ),
    Patch(
        "safetensors-to-remora",
        "safetensors refuses devices that it does not know by name",
        saving.replace_safe_open,
        saving.probe_safe_open,
    ),
)


def probes() -> list[tuple[str, bool, str]]:
    """Name, whether it holds, and detail, of every patch."""
    results = []
    for patch in PATCHES:
        wrong = patch.probe()
        results.append((patch.name, wrong is None, wrong or patch.reason))
    return results
