"""Everything that Remora changes in PyTorch itself, each with the reason and a probe that says whether it holds."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from remora.device import (
    accelerate_hooks,
    coexist,
    data_parallel,
    engine,
    guards,
    higher_order,
    optimizers,
    saving,
    scripting,
    subclass,
    tracing,
    trainer_hooks,
)
from remora.device import compile as compiling
from remora.device.accelerator import probe_accelerator, replace_accelerator
from remora.device.autocast import clear_with_pytorchs_cache, probe_cache
from remora.device.flags import probe_setters, watch_setters
from remora.device.profiler import follow_profiler, probe_profiler
from remora.device.rng import probe_generator, replace_generator
from remora.device.streams import probe_streams, replace_streams
from remora.device.tensor import RemoraTensor, nobodys


@dataclass(frozen=True)
class Patch:
    """apply: idempotent. probe: returns None when the patch does what it is for, else what is wrong."""

    name: str
    reason: str
    apply: Callable[[], None]
    probe: Callable[[], str | None]


def _swap_with_weakrefs() -> None:
    swap = torch.utils.swap_tensors
    if hasattr(swap, "_remora"):
        return
    # the same function, blind to weak references: they go with the parameter that they were made for
    blind = types.FunctionType(
        swap.__code__,
        {**swap.__globals__, "weakref": types.SimpleNamespace(getweakrefs=lambda tensor: [])},
        swap.__name__,
    )

    @functools.wraps(swap)
    def swap_tensors(t1: Any, t2: Any) -> None:
        (blind if isinstance(t1, RemoraTensor) or isinstance(t2, RemoraTensor) else swap)(t1, t2)

    swap_tensors._remora = True  # type: ignore[attr-defined]
    torch.utils.swap_tensors = swap_tensors


def _probe_swap_with_weakrefs() -> str | None:
    tensor = torch.zeros(1)
    reference = weakref.ref(tensor)
    try:
        torch.utils.swap_tensors(tensor, nobodys())
    except RuntimeError as error:
        return str(error)
    return None if type(reference()) is RemoraTensor else "swap_tensors() swaps nothing"


PATCHES = (
    Patch(
        "accelerate-knows-remora",
        "accelerate has no hook for other devices: Accelerator() and device_map='auto' would leave this one out",
        accelerate_hooks.install,
        accelerate_hooks.probe,
    ),
    Patch(
        "trainer-knows-remora",
        "transformers has no hook for other devices: Trainer would train on the CPU",
        trainer_hooks.install,
        trainer_hooks.probe,
    ),
    Patch(
        "data-parallel",
        "nn.DataParallel scatters by a C++ function that builds without CUDA do not have",
        data_parallel.install,
        data_parallel.probe,
    ),
    Patch(
        "foreach-optimizers",
        "optimizers run a row per parameter for tensor classes that they were not told of",
        optimizers.install,
        optimizers.probe,
    ),
    Patch(
        "compile-leaves-remora-alone",
        "Dynamo would trace into capture itself, and compile kernels for this machine",
        compiling.install,
        compiling.probe,
    ),
    Patch(
        "guards-of-whole-calls",
        "Dynamo traces no remora tensors, tells models that they are compiled, and resets what is the whole process's",
        lambda: None,  # made with the first trace: loading Dynamo takes a second, and most programs never do
        guards.probe,
    ),
    Patch(
        "higher-order-operators",
        "torch.cond and flex_attention refuse tensor subclasses that they were not told of",
        higher_order.install,
        higher_order.probe,
    ),
    Patch(
        "single-threaded-backward",
        "the autograd engine's threads, and errors on their way out of it, end the process for a device in Python",
        engine.install,
        engine.probe,
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
    Patch(
        "swap-compiled-parameters",
        "Dynamo's guards hold weak references to parameters, with which Module.to() would refuse to move them",
        _swap_with_weakrefs,
        _probe_swap_with_weakrefs,
    ),
    Patch(
        "scripted-modules-move",
        "TorchScript holds parameters in C++, where they cannot become remora tensors, and saves what is not there",
        scripting.install,
        scripting.probe,
    ),
    Patch(
        "tracers-take-remora-tensors",
        "make_fx and fake tensors step aside for tensor subclasses, and a graph then holds results instead of ops",
        tracing.install,
        tracing.probe,
    ),
    Patch(
        "generator",
        "torch.Generator is a C type that asks the device's C++ for its generators; for other devices nothing changes",
        replace_generator,
        probe_generator,
    ),
    Patch(
        "autocast-cache",
        "casts of weights end with the outermost autocast context, which clears a cache that only C++ devices share",
        clear_with_pytorchs_cache,
        probe_cache,
    ),
    Patch(
        "flag-setters",
        "PyTorch's process-wide flags change what the executor's kernels compute; the setters do what they did",
        watch_setters,
        probe_setters,
    ),
    Patch(
        "streams",
        "torch.Stream and torch.Event ask the device's C++, which has nothing behind it; for others nothing changes",
        replace_streams,
        probe_streams,
    ),
    Patch(
        "accelerator",
        "torch.accelerator asks the device's C++ for streams and memory; where it is not remora nothing changes",
        replace_accelerator,
        probe_accelerator,
    ),
    Patch(
        "profiler",
        "a profiler of the device asks its C++ for the time of kernels; here the executor tells it, range by range",
        follow_profiler,
        probe_profiler,
    ),
)


def probes() -> list[tuple[str, bool, str]]:
    """Name, whether it holds, and detail, of every patch."""
    results = []
    for patch in PATCHES:
        wrong = patch.probe()
        results.append((patch.name, wrong is None, wrong or patch.reason))
    return results
