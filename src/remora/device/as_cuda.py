"""`remora run --as-cuda`: code that says "cuda" gets remora.

What takes a device rewrites "cuda" to "remora" on its way in, function by function, so an op without a device
argument costs nothing. `torch.device("cuda")` itself stays what it is: a program that compares `device.type`
with "cuda" goes its way. A tensor says `device='remora:0'`, honestly, and `is_cuda` is true. A GPU of the
client's own is never touched. What cannot be kept is refused by name. Ends only with the process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.utils import _device

from remora.device import index
from remora.device.patches import Patch
from remora.device.tensor import RemoraTensor
from remora.errors import NotSupported

_NEW = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")
_LIKE = ("empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like")
_LEAVES = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_MARK = "_remora_as_cuda"


def as_cuda() -> None:
    """From now on, "cuda" means the remora device in this process. Idempotent."""
    for patch in AS_CUDA_PATCHES:
        patch.apply()


def moved(device: Any) -> Any:
    """The device that a program gets for the one that it names."""
    kind = type(device)
    if kind is str:
        return f"remora{device[4:]}" if device == "cuda" or device.startswith("cuda:") else device
    if kind is torch.device:
        return torch.device(f"remora{str(device)[4:]}") if device.type == "cuda" else device
    if kind is int:
        return torch.device("remora", device)
    return device


def _set(owner: Any, name: str, replacement: Any) -> None:
    setattr(replacement, _MARK, True)
    setattr(owner, name, replacement)


def _is_set(owner: Any, name: str) -> bool:
    return hasattr(getattr(owner, name, None), _MARK)


def _missing(owner: Any, names: tuple[str, ...]) -> str | None:
    wrong = [name for name in names if not _is_set(owner, name)]
    return f"not replaced: {', '.join(wrong)}" if wrong else None


# Functions that make a tensor, and what moves one


def _factories() -> list[tuple[Any, str]]:
    """Where PyTorch keeps the functions that take a device and no tensor, and their `like` companions."""
    makers = _device._device_constructors()  # keeps what it finds now: PyTorch's own functions
    found = [(torch, name) for name in _LIKE]
    for owner in (torch, torch.fft, torch.nested, torch.signal.windows):
        found += [(owner, n) for n, f in vars(owner).items() if isinstance(f, Callable) and f in makers]
    return found


def _replace_factories() -> None:
    if _is_set(torch, "empty"):
        return
    for owner, name in _factories():
        original = getattr(owner, name)
        made = _with_device(original)
        _set(owner, name, made)
        builtin = torch.jit._builtins._find_builtin(original)
        if builtin is not None:
            torch.jit._builtins._register_builtin(made, builtin)  # TorchScript knows functions by identity
    for name in _NEW:
        _set(torch.Tensor, name, _with_device(getattr(torch.Tensor, name)))


def _with_device(original: Any) -> Any:
    @wraps(original)
    def make(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            if "device" in kwargs:
                kwargs["device"] = moved(kwargs["device"])
            kwargs.pop("pin_memory", None)
        return original(*args, **kwargs)

    return make


def _probe_factories() -> str | None:
    return _missing(torch, ("empty", "zeros", "tensor", "as_tensor", "arange", *_LIKE)) or _missing(
        torch.Tensor, _NEW
    )


def _replace_moves() -> None:
    if _is_set(torch.Tensor, "to"):
        return
    to, cast = torch.Tensor.to, torch.Tensor.type

    @wraps(to)
    def tensor_to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            first = args[0]
            kind = type(first)
            if kind is torch.device or kind is str or kind is int:
                args = (moved(first), *args[1:])
        if "device" in kwargs:
            kwargs["device"] = moved(kwargs["device"])
        return to(self, *args, **kwargs)

    def cuda(
        self: Any, device: Any = None, non_blocking: bool = False, memory_format: Any = torch.preserve_format
    ) -> Any:
        device = "remora" if device is None else moved(device)
        return to(self, device, non_blocking=non_blocking, memory_format=memory_format)

    def type_(self: Any, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if isinstance(dtype, str) and dtype.startswith("torch.cuda."):
            return to(self, "remora", getattr(torch, dtype.rpartition(".")[2]).dtype, non_blocking)
        return (
            cast(self, non_blocking=non_blocking)
            if dtype is None
            else cast(self, dtype, non_blocking, **kwargs)
        )

    def pin_memory(self: Any, device: Any = None) -> Any:
        return self

    for name, replacement in (("to", tensor_to), ("cuda", cuda), ("type", type_), ("pin_memory", pin_memory)):
        _set(torch.Tensor, name, replacement)
    RemoraTensor.is_cuda = property(lambda self: True)  # type: ignore[assignment]
    torch.UntypedStorage.cuda = _refused(
        "UntypedStorage.cuda(), as in a map_location function", 'torch.load(map_location="cuda") works'
    )


def _probe_moves() -> str | None:
    if torch.ones(1).to("cpu", torch.float64).dtype != torch.float64:
        return "Tensor.to() lost its arguments"
    return _missing(torch.Tensor, ("to", "cuda", "type", "pin_memory"))


# The device of a `with` block and the default device


def _replace_context() -> None:
    if _is_set(_device.DeviceContext, "__init__"):
        return
    original = _device.DeviceContext.__init__

    def init(self: Any, device: Any) -> None:
        original(self, moved(device))

    _set(_device.DeviceContext, "__init__", init)


def _probe_context() -> str | None:
    given = _device.DeviceContext("cuda").device.type
    return None if given == "remora" else f'`with torch.device("cuda")` gives {given}'


# torch.cuda


def _refused(what: str, instead: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotSupported(f"{what} on the remora device; {instead}")

    return refuse


def _nothing(*args: Any, **kwargs: Any) -> None: ...


def _refused_type(name: str, instead: str) -> type:
    """As `_refused`, for what programs also name in annotations."""
    return type(name, (), {"__init__": _refused(f"torch.cuda.{name}", instead)})


def _here(function: Any) -> Any:
    """A function of the device module, for a program that names its device "cuda"."""
    return lambda device=None: function(moved(device))


# Of torch.remora, with a device that may be "cuda".
_OF_DEVICE = (
    *("get_device_name", "get_device_capability", "get_device_properties", "set_device", "synchronize"),
    *("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved", "memory_stats"),
    *("mem_get_info", "reset_peak_memory_stats", "reset_accumulated_memory_stats", "get_rng_state"),
    *("current_stream", "default_stream"),
)
_AS_IT_IS = (
    *("device_count", "current_device", "manual_seed", "manual_seed_all", "seed", "seed_all", "initial_seed"),
    *("default_generators", "get_rng_state_all", "set_rng_state", "set_rng_state_all", "empty_cache"),
    *("device", "device_of"),
    *("is_bf16_supported", "Stream", "Event", "StreamContext", "stream", "set_stream", "memory_summary"),
)


def _cuda_functions() -> dict[str, Any]:
    ours = torch.remora  # type: ignore[attr-defined]
    graphs = "capture happens by itself: call the model"
    return {
        **{name: _here(getattr(ours, name)) for name in _OF_DEVICE},
        **{name: getattr(ours, name) for name in _AS_IT_IS},
        **dict.fromkeys(("is_available", "is_initialized"), lambda: True),
        **dict.fromkeys(("_is_in_bad_fork", "is_current_stream_capturing"), lambda: False),
        **dict.fromkeys(("init", "_lazy_init", "ipc_collect"), _nothing),
        "reset_max_memory_allocated": _here(ours.reset_peak_memory_stats),
        "reset_max_memory_cached": _here(ours.reset_peak_memory_stats),
        "memory_cached": _here(ours.memory_reserved),
        "max_memory_cached": _here(ours.max_memory_reserved),
        "make_graphed_callables": _refused("torch.cuda.make_graphed_callables", graphs),
        "memory_snapshot": _refused("memory snapshots", "memory_stats() is there"),
        "get_arch_list": list,
        "can_device_access_peer": lambda device, peer: device == peer,
        "CUDAGraph": _refused_type("CUDAGraph", graphs),
        "graph": _refused_type("graph", graphs),
    }


def _replace_functions() -> None:
    for name, replacement in _cuda_functions().items():
        setattr(torch.cuda, name, replacement)


def _probe_functions() -> str | None:
    if not torch.cuda.is_available():
        return "torch.cuda is not available"
    return (
        None
        if torch.cuda.Event is torch.remora.Event  # type: ignore[attr-defined]
        else "torch.cuda speaks of a GPU of this machine"
    )


# Precision, generators, checkpoints


_AUTOCAST = ("is_autocast_enabled", "set_autocast_enabled", "get_autocast_dtype", "set_autocast_dtype")


def _replace_precision() -> None:
    autocasts, scaler = torch.amp.autocast_mode, torch.amp.grad_scaler.GradScaler
    autocast = autocasts.autocast
    if _is_set(autocast, "__init__"):
        return
    enter, scale, cast = autocast.__init__, scaler.__init__, autocasts._cast

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        enter(self, moved(device_type), *args, **kwargs)

    def init_scaler(self: Any, device: str = "cuda", *args: Any, **kwargs: Any) -> None:
        scale(self, moved(device), *args, **kwargs)

    _set(autocast, "__init__", init)
    _set(scaler, "__init__", init_scaler)
    _set(autocasts, "_cast", lambda value, device_type, dtype: cast(value, moved(device_type), dtype))
    for name in _AUTOCAST:
        _set(torch, name, _for_device(getattr(torch, name)))
    _set(torch, "get_autocast_gpu_dtype", lambda: torch.get_autocast_dtype("remora"))
    _set(torch, "set_autocast_gpu_dtype", lambda dtype: torch.set_autocast_dtype("remora", dtype))


def _for_device(original: Any) -> Any:
    """These take the device's type first; without one they mean "cuda"."""

    def of_device(*args: Any, **kwargs: Any) -> Any:
        if "device_type" in kwargs:
            kwargs["device_type"] = moved(kwargs["device_type"])
        elif args and isinstance(args[0], str):
            args = (moved(args[0]), *args[1:])
        else:
            args = ("remora", *args)
        return original(*args, **kwargs)

    return of_device


def _probe_precision() -> str | None:
    return None if torch.autocast("cuda").device == "remora" else 'autocast("cuda") is silently ignored'


def _replace_generator() -> None:
    index.local_device = lambda device: torch.device(moved(device))


def _probe_generator() -> str | None:
    made = torch.Generator("cuda").device.type
    return None if made == "remora" else f'torch.Generator("cuda") is one of {made}'


def _replace_load() -> None:
    if _is_set(torch, "load"):
        return
    original = torch.load

    @wraps(original)
    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if callable(map_location):
            return original(f, map_location, *args, **kwargs)
        ours: dict[int, Any] = {}  # storages that belong on the device, kept alive while their ids are in use

        def place(storage: Any, location: str) -> Any:
            target = map_location.get(location, location) if isinstance(map_location, dict) else map_location
            target = torch.device(moved(target if target is not None else location))
            if target.type == "remora":
                ours[storage._cdata] = storage
            elif target.type != "cpu":
                raise NotSupported(f"torch.load to {target}, with --as-cuda")
            return storage

        return _carried(original(f, place, *args, **kwargs), ours, {})

    _set(torch, "load", load)
    torch.serialization.load = load


def _carried(item: Any, ours: dict[int, Any], bases: dict[int, Any]) -> Any:
    """The loaded object with its tensors on the device; tensors that share memory go on sharing it."""
    if not ours:
        return item
    if isinstance(item, torch.Tensor):
        return _carried_tensor(item, ours, bases)
    if isinstance(item, dict):
        for name, value in item.items():
            item[name] = _carried(value, ours, bases)
        return item
    if type(item) in (list, tuple, set):
        return type(item)(_carried(value, ours, bases) for value in item)
    if isinstance(item, torch.nn.Module):
        return item.to("remora")
    if isinstance(item, _LEAVES) or type(item).__module__ == "numpy":
        return item
    raise NotSupported(
        f"torch.load of a {type(item).__name__} to the remora device; "
        'load it with map_location="cpu" and move what it holds'
    )


def _carried_tensor(tensor: torch.Tensor, ours: dict[int, Any], bases: dict[int, Any]) -> torch.Tensor:
    storage = tensor.untyped_storage()
    if storage._cdata not in ours:
        return tensor
    with torch.no_grad():
        key = storage._cdata, tensor.dtype
        if key not in bases:
            bases[key] = torch.empty(0, dtype=tensor.dtype).set_(storage).to("remora")
        there = bases[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(there, tensor.requires_grad)
    return there.requires_grad_(tensor.requires_grad)


def _probe_load() -> str | None:
    return _missing(torch, ("load",))


AS_CUDA_PATCHES = (
    Patch(
        "as-cuda-factories",
        'torch.zeros(..., device="cuda") makes a remora tensor',
        _replace_factories,
        _probe_factories,
    ),
    Patch("as-cuda-moves", "Tensor.to, cuda, type and what is built on them", _replace_moves, _probe_moves),
    Patch(
        "as-cuda-context",
        "the device of a `with` block and the default device",
        _replace_context,
        _probe_context,
    ),
    Patch("as-cuda-functions", "torch.cuda.* speaks of the executor", _replace_functions, _probe_functions),
    Patch("as-cuda-precision", "autocast and GradScaler", _replace_precision, _probe_precision),
    Patch("as-cuda-generator", 'torch.Generator("cuda")', _replace_generator, _probe_generator),
    Patch("as-cuda-load", "torch.load to the device goes through the CPU", _replace_load, _probe_load),
)
