"""What registering a device changes in PyTorch for programs that never use it, put back.

A registered device is PyTorch's accelerator from then on: `torch.accelerator` speaks of it, and memory is pinned
for it. So it is only where the program asked for it: by a session, or in its environment. Until then all of that
is as if nothing had been registered.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

from remora.config import is_asked_for
from remora.device.ahead import expect
from remora.device.sink import bound
from remora.device.tensor import RemoraTensor, nobodys

_C = torch._C
_NO_ACCELERATOR = "Cannot access accelerator device when none is available."  # PyTorch's own words
_PINNED = "_remora_pinned"  # on a CPU storage that a program has pinned

# What torch.accelerator asks PyTorch's core, and who answers on a machine with an accelerator of its own.
_ANSWERS = {
    "_accelerator_getDeviceIndex": "current_device",
    "_accelerator_setDeviceIndex": "set_device",
    "_accelerator_getStream": "current_stream",
    "_accelerator_setStream": "set_stream",
    "_accelerator_synchronizeDevice": "synchronize",
    "_accelerator_exchangeDevice": "_exchange_device",
    "_accelerator_maybeExchangeDevice": "_maybe_exchange_device",
    "_accelerator_emptyCache": "empty_cache",
    "_accelerator_getDeviceStats": "memory_stats",
    "_accelerator_getMemoryInfo": "mem_get_info",
    "_accelerator_resetAccumulatedStats": "reset_accumulated_memory_stats",
    "_accelerator_resetPeakStats": "reset_peak_memory_stats",
    "_accelerator_getDeviceCapability": "get_device_capability",
    "_accelerator_isAllocatorInitialized": "is_initialized",
}
_own: torch.device | None = None  # this machine's accelerator, as PyTorch said before remora was registered


def note_own_accelerator() -> None:
    """To be called before the device is registered."""
    global _own
    _own = _C._accelerator_getAccelerator()


def asked() -> bool:
    """Whether this program uses remora: it has or had a session, or its environment asks for one."""
    return bound.recorder is not None or bound.ended is not None or is_asked_for()


def replace_accelerator() -> None:
    if hasattr(_C._accelerator_getAccelerator, "_remora"):
        return
    found = _C._accelerator_getAccelerator

    @functools.wraps(found)
    def accelerator() -> torch.device | None:
        return found() if asked() else _own

    accelerator._remora = True  # type: ignore[attr-defined]
    _C._accelerator_getAccelerator = accelerator
    _C._get_accelerator = _or_cpu(_C._get_accelerator)
    for name, answer in _ANSWERS.items():
        original = getattr(_C, name, None)
        if original is not None:  # PyTorch 2.11 has fewer
            setattr(_C, name, _unless_asked(original, answer))


def _or_cpu(original: Callable[..., torch.device]) -> Callable[..., torch.device]:
    @functools.wraps(original)
    def accelerator(check: bool | None = None) -> torch.device:
        return original(check) if asked() else _own or torch.device("cpu")

    return accelerator


def _unless_asked(original: Callable[..., Any], answer: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def ask(*args: Any, **kwargs: Any) -> Any:
        if asked():
            return original(*args, **kwargs)
        if _own is None:
            raise RuntimeError(_NO_ACCELERATOR)
        return getattr(torch.get_device_module(_own), answer)(*args, **kwargs)

    return ask


def probe_accelerator() -> str | None:
    missing = [
        name
        for name in ("_accelerator_getDeviceIndex", "_accelerator_synchronizeDevice")
        if name not in vars(_C)
    ]
    if missing:
        return f"PyTorch has no {', '.join(missing)}"
    found = torch.accelerator.current_accelerator()
    expected = torch.device("remora") if asked() else _own
    return None if found == expected else f"the accelerator is {found}, not {expected}"


def replace_pinning() -> None:
    """Memory that goes to an executor over a network gains nothing from pinning, so that copies nothing."""
    tensor = torch.Tensor
    if hasattr(tensor.pin_memory, "_remora"):
        return
    pin, is_pinned = tensor.pin_memory, tensor.is_pinned

    @functools.wraps(pin)
    def pin_memory(self: Any, device: Any = None) -> Any:
        if device is None and not asked():
            if _own is None:
                raise RuntimeError(_NO_ACCELERATOR)
            return pin(self, _own)
        if device is not None and torch.device(device).type != "remora":
            return pin(self, device)
        if self.device.type != "cpu" or self.layout is not torch.strided:
            raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")
        setattr(self.untyped_storage(), _PINNED, True)
        return self

    @functools.wraps(is_pinned)
    def tensor_is_pinned(self: Any, device: Any = None) -> bool:
        if self.layout is torch.strided and hasattr(self.untyped_storage(), _PINNED):
            return True
        return is_pinned(self, _own if device is None else device) if _own is not None else False

    pin_memory._remora = True  # type: ignore[attr-defined]
    tensor.pin_memory = pin_memory  # type: ignore[method-assign]
    tensor.is_pinned = tensor_is_pinned  # type: ignore[method-assign]


def probe_pinning() -> str | None:
    tensor = torch.zeros(1)
    if not asked():
        return None if not tensor.is_pinned() else "a tensor that nobody pinned is pinned"
    return None if tensor.pin_memory() is tensor and tensor.is_pinned() else "pin_memory() copies"


def replace_module_apply() -> None:
    """Parameters that become remora tensors, or cease to be, change their class in place: ties and optimizers hold."""
    if hasattr(torch.nn.Module._apply, "_remora"):
        return
    module = torch.nn.modules.module
    swapped, apply = module.is_traceable_wrapper_subclass, torch.nn.Module._apply

    def is_traceable_wrapper_subclass(converted: Any) -> bool:
        return swapped(converted) or getattr(_converted, "crosses", False)

    @functools.wraps(apply)
    def _apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        return apply(self, fn if type(fn) is _Conversion else _Conversion(fn, self), recurse)

    _apply._remora = True  # type: ignore[attr-defined]
    module.is_traceable_wrapper_subclass = is_traceable_wrapper_subclass
    torch.nn.Module._apply = _apply  # type: ignore[method-assign]


class _Conversion:
    """What Module.to() does to each tensor; notes whether the tensor came to remora, or left it."""

    def __init__(self, fn: Callable[[Any], Any], module: torch.nn.Module) -> None:
        self.fn = fn
        self.module: torch.nn.Module | None = module

    def __call__(self, tensor: Any) -> Any:
        converted = self.fn(tensor)
        leaves = isinstance(tensor, RemoraTensor)
        _converted.crosses = leaves != isinstance(converted, RemoraTensor)
        if leaves and _converted.crosses and self.module is not None:  # the others follow
            expect(_tensors_of(self.module))
            self.module = None
        return converted


def _tensors_of(module: torch.nn.Module) -> list[RemoraTensor]:
    found = []
    for tensor in (*module.parameters(), *module.buffers()):
        found += [t for t in (tensor, tensor.grad) if type(t) is RemoraTensor]
    return found


_converted = threading.local()


def probe_module_apply() -> str | None:
    first, second = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    both = torch.nn.Sequential(first, second)
    seen = both[0].weight
    held = seen[0]  # PyTorch's own way of converting does not mind
    both._apply(lambda tensor: tensor.double() if tensor.dtype is torch.float32 else tensor)
    if not (both[0].weight is both[1].weight is seen and held.dtype is torch.float32):
        return "Module.to() of a model that has nothing to do with remora has changed"
    del held
    there = nobodys()
    _Conversion(lambda tensor: there, first)(seen)
    swaps = torch.nn.modules.module.is_traceable_wrapper_subclass(there)
    _converted.crosses = False
    asks = torch.nn.Module._apply.__wrapped__.__code__.co_names  # type: ignore[attr-defined]
    if not swaps or "is_traceable_wrapper_subclass" not in asks:
        return "Module.to() parts tied parameters"
    return None
