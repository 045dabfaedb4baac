"""`torch.accelerator` where the accelerator is remora: PyTorch asks C++ for what only Python knows here."""

from __future__ import annotations

import functools
from typing import Any

import torch

from remora.device import current, index, memory, streams
from remora.device.sink import bound

_MARK = "_remora"


def _synchronize(device: Any = None) -> None:
    index.index_of(device)
    if bound.sink is not None:
        bound.sink.barrier()


_OURS: dict[str, Any] = {
    "synchronize": _synchronize,
    "current_stream": streams.current_stream,
    "set_stream": streams.set_stream,
    "get_device_capability": lambda device=None: {
        "supported_dtypes": {torch.float32, torch.float16, torch.bfloat16, torch.float64}
        | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
        | {torch.complex64, torch.complex128}
    },
    "set_device_index": current.set_device,
    "empty_cache": memory.empty_cache,
    "memory_stats": memory.memory_stats,
    "memory_allocated": memory.memory_allocated,
    "max_memory_allocated": memory.max_memory_allocated,
    "memory_reserved": memory.memory_reserved,
    "max_memory_reserved": memory.max_memory_reserved,
    "reset_accumulated_memory_stats": memory.reset_accumulated_memory_stats,
    "reset_peak_memory_stats": memory.reset_peak_memory_stats,
    "get_memory_info": memory.mem_get_info,
}
# what torch.accelerator's functions ask PyTorch's core
_IN_CORE: dict[str, Any] = {
    "_accelerator_getDeviceIndex": index.current,
    "_accelerator_setDeviceIndex": current.set_device,
    "_accelerator_exchangeDevice": lambda device: current.exchange(index.index_of(device)),
    "_accelerator_maybeExchangeDevice": lambda device: current.exchange(index.index_of(device)),
}


def replace_accelerator() -> None:
    for name, ours in _OURS.items():
        for owner in (torch.accelerator, torch.accelerator.memory):
            original = vars(owner).get(name)
            if original is not None and not hasattr(original, _MARK):
                setattr(owner, name, _chosen(original, ours))
    for name, ours in _IN_CORE.items():
        original = getattr(torch._C, name, None)
        if original is not None and not hasattr(original, _MARK):
            setattr(torch._C, name, _chosen(original, ours))
    for alias, name in (("set_device_idx", "set_device_index"),):
        if hasattr(torch.accelerator, alias):
            setattr(torch.accelerator, alias, vars(torch.accelerator)[name])


def _chosen(original: Any, ours: Any) -> Any:
    @functools.wraps(original)
    def choose(*args: Any, **kwargs: Any) -> Any:
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is None or accelerator.type != "remora":
            return original(*args, **kwargs)
        return ours(*args, **kwargs)

    setattr(choose, _MARK, True)
    return choose


def probe_accelerator() -> str | None:
    missing = [
        n
        for n in _OURS
        if hasattr(torch.accelerator, n) and not hasattr(getattr(torch.accelerator, n), _MARK)
    ]
    missing += [n for n in _IN_CORE if hasattr(torch._C, n) and not hasattr(getattr(torch._C, n), _MARK)]
    return f"not replaced: {', '.join(missing)}" if missing else None
