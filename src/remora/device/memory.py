"""Memory of the executor, as the session sees it, and what the executor computes on.

`allocated` are the bytes of the session's tensors there, each storage once: what the program holds, and nothing that
exists only while a segment runs. Each call of these functions asks the executor, except for the device's facts.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from remora.device.index import current, index_of
from remora.device.sink import bound
from remora.errors import NotSupported
from remora.wire.messages import Memory


@dataclass(frozen=True)
class DeviceProperties:
    """total_memory: bytes. major, minor: compute capability, 0.0 for a CPU."""

    name: str
    type: str
    total_memory: int
    major: int
    minor: int
    multi_processor_count: int


def get_device_properties(device: Any = None) -> DeviceProperties:
    _, sink = bound.need()
    facts = sink.facts(index_of(device))
    return DeviceProperties(
        facts.name, bound.device_type, facts.total_nbytes, facts.major, facts.minor, facts.multi_processors
    )


def get_device_name(device: Any = None) -> str:
    return get_device_properties(device).name


def get_device_capability(device: Any = None) -> tuple[int, int]:
    known = get_device_properties(device)
    return known.major, known.minor


def is_bf16_supported(including_emulation: bool = True) -> bool:
    _, sink = bound.need()
    return sink.facts(current()).bfloat16


def _now(device: Any, reset_peak: bool = False) -> Memory:
    _, sink = bound.need()
    return sink.memory(reset_peak, index_of(device))


def memory_allocated(device: Any = None) -> int:
    return _now(device).allocated_nbytes


def max_memory_allocated(device: Any = None) -> int:
    """Since the session began, or the peak was reset."""
    return _now(device).peak_nbytes


def memory_reserved(device: Any = None) -> int:
    """By the device's allocator, for all sessions of the executor."""
    return _now(device).reserved_nbytes


def max_memory_reserved(device: Any = None) -> int:
    raise NotSupported(
        "the peak of the executor's reserved memory, which its sessions share; use memory_reserved()"
    )


def reset_peak_memory_stats(device: Any = None) -> None:
    _now(device, reset_peak=True)


def reset_accumulated_memory_stats(device: Any = None) -> None:
    raise NotSupported("resetting accumulated memory statistics; subtract an earlier memory_stats()")


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Bytes that a new tensor may take, and that the executor grants in all."""
    return _now(device).free_nbytes, bound.need()[1].memory_nbytes(index_of(device))


def memory_stats(device: Any = None) -> OrderedDict[str, int]:
    """Under the names that torch.cuda.memory_stats gives them, those that are known."""
    now = _now(device)
    return OrderedDict(
        {
            "active.all.current": now.storages,
            "allocated_bytes.all.allocated": now.total_nbytes,
            "allocated_bytes.all.current": now.allocated_nbytes,
            "allocated_bytes.all.freed": now.total_nbytes - now.allocated_nbytes,
            "allocated_bytes.all.peak": now.peak_nbytes,
            "reserved_bytes.all.current": now.reserved_nbytes,
        }
    )


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    return "\n".join(f"{name:32} {value:>20,}" for name, value in memory_stats(device).items())


def empty_cache() -> None:
    """Tells the executor what the program has let go. Waits for nothing."""
    if bound.sink is not None:
        bound.sink.idle()
