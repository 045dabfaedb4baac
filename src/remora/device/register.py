"""Registers the device `remora` with PyTorch: once, when `import remora` asks for it."""

from __future__ import annotations

import atexit
from typing import Any

import torch

from remora.device import tensor as tensors
from remora.device.coexist import note_own_accelerator
from remora.device.dispatch import record
from remora.device.memo_store import store
from remora.device.module import DeviceModule
from remora.device.patches import PATCHES
from remora.device.storage import register_storages
from remora.device.tensor import RemoraTensor
from remora.ops.composites import COMPOSITES
from remora.ops.schema import resolve

_libraries: list[Any] = []  # registrations end when their library dies
# Ops that make a tensor from nothing, by base name. Looking through all ops for them takes 0.1 s at every
# import; tests/unit/test_device_register.py looks, and fails when a PyTorch has more.
FACTORIES = frozenset(
    {"_efficientzerotensor", "arange", "bartlett_window", "blackman_window", "empty", "empty_permuted"}
    | {"empty_strided", "eye", "fft_fftfreq", "fft_rfftfreq", "full", "hamming_window", "hann_window"}
    | {"kaiser_window", "linspace", "logspace", "normal", "ones", "rand", "randint", "randn", "randperm"}
    | {"range", "scalar_tensor", "tril_indices", "triu_indices", "zeros"}
)


def register() -> None:
    """Makes `torch.device("remora")` known. Idempotent."""
    if _libraries:
        return
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    note_own_accelerator()
    _setup_privateuseone_for_python_backend("remora", backend_module=DeviceModule("torch.remora"))
    tensors.DEVICE = torch.device("remora", 0)
    RemoraTensor.__torch_dispatch__ = staticmethod(record)  # type: ignore[assignment,method-assign]
    library = torch.library.Library("aten", "IMPL")
    _libraries.append(library)
    _register_factories(library)
    _register_composites(library)
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("_local_scalar_dense", _local_scalar_dense, "PrivateUse1")
    register_storages()
    for patch in PATCHES:
        patch.apply()
    atexit.register(store.save)


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    return record(torch.ops.aten.copy_.default, (), (target, source), {}, 2)


def _local_scalar_dense(source: Any) -> Any:
    """`torch.tensor([tensor, tensor])` reads its elements below the tensors' own dispatch."""
    return record(torch.ops.aten._local_scalar_dense.default, (), (source,), {}, 2)


def _register_factories(library: Any) -> None:
    """Ops that make a tensor from nothing have no tensor to dispatch on, so each gets a kernel."""
    for full_name in torch._C._dispatch_get_all_op_names():
        name, _, overload = full_name.removeprefix("aten::").partition(".")
        if name in FACTORIES and full_name.startswith("aten::"):
            op = getattr(getattr(torch.ops.aten, name), overload or "default", None)
            if op is not None and makes_from_nothing(op):
                library.impl(full_name.removeprefix("aten::"), _factory(op), "PrivateUse1")


def makes_from_nothing(op: Any) -> bool:
    """Whether the op takes a device and no tensor, and gives one tensor."""
    arguments = op._schema.arguments
    makes_tensor = len(op._schema.returns) == 1 and "Tensor" in str(op._schema.returns[0].type)
    takes_tensor = any("Tensor" in str(argument.type) for argument in arguments)
    return makes_tensor and not takes_tensor and any(argument.name == "device" for argument in arguments)


def _factory(op: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        if kwargs.pop("pin_memory", None):
            raise RuntimeError("Only dense CPU tensors can be pinned")
        device = kwargs.get("device")
        if device is not None and device.index not in (None, 0):
            raise RuntimeError(f"{device} does not exist: this session has one executor, remora:0")
        if kwargs.get("layout") not in (None, torch.strided):
            raise NotImplementedError(f"{op} with layout {kwargs['layout']} on the remora device")
        kwargs["device"] = tensors.DEVICE
        return record(op, (), args, kwargs, 2)

    return make


def _register_composites(library: Any) -> None:
    """Keeps a composite op whole where nothing needs a gradient; else PyTorch's own decomposition runs."""
    for name in COMPOSITES:
        op = resolve(name)
        kernel = _composite(op)
        library.impl(op.name(), kernel, "AutogradPrivateUse1")
        library.impl(op.name(), kernel, "PrivateUse1")


def _composite(op: Any) -> Any:
    grad_enabled = torch.is_grad_enabled

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if grad_enabled() and _needs_grad(args, kwargs):
            return op.decompose(*args, **kwargs)
        return record(op, (), args, kwargs, 2)

    return kernel


def _needs_grad(args: Any, kwargs: Any) -> bool:
    for items in (args, kwargs.values()):
        for item in items:
            if isinstance(item, torch.Tensor):
                if item.requires_grad:
                    return True
            elif isinstance(item, (list, tuple)) and _needs_grad(item, {}):
                return True
    return False


__all__ = ["RemoraTensor", "register"]
