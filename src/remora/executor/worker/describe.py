"""What the device is, what a session takes of it, and when it passes a place in a session's op stream."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch

from remora.executor.worker.memory import device_memory_nbytes
from remora.executor.worker.values import Values
from remora.wire.messages import DeviceFacts, Marked, Memory


def facts(device: torch.device, ticket: int) -> DeviceFacts:
    if device.type == "cuda":
        known = torch.cuda.get_device_properties(device)
        return DeviceFacts(
            ticket,
            known.name,
            known.total_memory,
            known.major,
            known.minor,
            known.multi_processor_count,
            torch.cuda.is_bf16_supported(),
        )
    name = f"{_processor()}, {torch.get_num_threads()} threads"
    return DeviceFacts(ticket, name, device_memory_nbytes(device), 0, 0, os.cpu_count() or 1, True)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()[:100]
    return "CPU"


def memory_taken(device: torch.device, ticket: int, values: Values, room_nbytes: int) -> Memory:
    """What a session's values take, and what new ones may."""
    return Memory(
        ticket,
        values.held_nbytes,
        values.peak_nbytes,
        values.total_nbytes,
        values.storages,
        reserved_nbytes(device, values.held_nbytes),
        max(0, room_nbytes),
    )


def reserved_nbytes(device: torch.device, used_nbytes: int) -> int:
    """What the allocator holds; a CPU's gives back what is not used."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else used_nbytes


class Marks:
    """Marks that the device has not passed yet, oldest first. A CPU passes them when they come."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start: Any = None
        self._waiting: deque[tuple[Any, int, float, Any]] = deque()  # session, ticket, busy_s, event

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, session: Any, ticket: int, busy_s: float) -> Marked | None:
        """The answer, if it is known at once; else `passed` has it later."""
        if self.device.type != "cuda":
            return Marked(ticket, time.perf_counter(), busy_s)
        if self._start is None:
            self._start = self._event()
        self._waiting.append((session, ticket, busy_s, self._event()))
        return None

    def passed(self) -> list[tuple[Any, Marked]]:
        """Sessions and the marks that the device has passed meanwhile."""
        found = []
        while self._waiting and self._waiting[0][3].query():
            session, ticket, busy_s, event = self._waiting.popleft()
            found.append((session, Marked(ticket, self._start.elapsed_time(event) / 1e3, busy_s)))
        return found

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
