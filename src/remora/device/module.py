"""`torch.remora`: what PyTorch expects a device to offer, as `torch.cuda` does; each subject has a file of its own."""

from __future__ import annotations

import types
from typing import Any

import torch

from remora.device import current, index, memory, rng, streams
from remora.device.autocast import supported_dtypes
from remora.device.sink import bound


class DeviceModule(types.ModuleType):
    """The device module."""

    manual_seed = staticmethod(rng.manual_seed)
    manual_seed_all = staticmethod(rng.manual_seed_all)
    seed = staticmethod(rng.seed)
    seed_all = staticmethod(rng.seed_all)
    initial_seed = staticmethod(rng.initial_seed)
    get_rng_state = staticmethod(rng.get_rng_state)
    set_rng_state = staticmethod(rng.set_rng_state)
    get_rng_state_all = staticmethod(rng.get_rng_state_all)
    set_rng_state_all = staticmethod(rng.set_rng_state_all)
    default_generators = rng.defaults

    Stream, Event, StreamContext = streams.Stream, streams.Event, streams.StreamContext
    stream = streams.StreamContext
    current_stream = staticmethod(streams.current_stream)
    default_stream = staticmethod(streams.default_stream)
    set_stream = staticmethod(streams.set_stream)

    get_device_properties = staticmethod(memory.get_device_properties)
    get_device_name = staticmethod(memory.get_device_name)
    get_device_capability = staticmethod(memory.get_device_capability)
    is_bf16_supported = staticmethod(memory.is_bf16_supported)
    memory_allocated = staticmethod(memory.memory_allocated)
    max_memory_allocated = staticmethod(memory.max_memory_allocated)
    memory_reserved = staticmethod(memory.memory_reserved)
    max_memory_reserved = staticmethod(memory.max_memory_reserved)
    memory_stats = staticmethod(memory.memory_stats)
    memory_summary = staticmethod(memory.memory_summary)
    mem_get_info = get_memory_info = staticmethod(memory.mem_get_info)
    reset_peak_memory_stats = staticmethod(memory.reset_peak_memory_stats)
    reset_accumulated_memory_stats = staticmethod(memory.reset_accumulated_memory_stats)
    empty_cache = staticmethod(memory.empty_cache)

    get_amp_supported_dtype = staticmethod(supported_dtypes)

    def is_available(self) -> bool:
        return True

    def init(self) -> None:
        """Nothing: a session starts when the first tensor is made."""

    def is_initialized(self) -> bool:
        return bound.recorder is not None

    @property
    def _initialized(self) -> bool:
        """Whether there is a generator state to keep: torch.utils.checkpoint asks for it by this name."""
        return bound.recorder is not None

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        """One for each executor with placement="explicit", else 1."""
        return bound.n_devices

    current_device = staticmethod(index.current)
    set_device = staticmethod(current.set_device)
    device = current.device
    device_of = current.device_of

    def synchronize(self, device: Any = None) -> None:
        """Blocks until everything recorded so far has run."""
        index.index_of(device)
        if bound.sink is not None:
            bound.sink.barrier()


def torch_version() -> str:
    return str(torch.__version__)
