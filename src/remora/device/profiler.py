"""`torch.profiler` with remote time: what the executor computed in each `record_function` range.

PyTorch's profiler sees the client, where an op only costs its recording. While it runs for this device, the ends of
ranges are marked in the op stream; the marks come back by themselves, and at the end each range gets the time that
the executor computed in it, as its device time. On a GPU a mark waits, on the executor, for the kernels before it.
Marks cut segments, so a profiled program has other templates than an unprofiled one.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import torch
from torch.autograd import profiler
from torch.autograd.profiler_util import FunctionEvent

from remora.device.index import current
from remora.device.sink import Moment, bound

_MARK = "_remora"
_DEVICE_TYPE = torch._C._autograd.DeviceType.PrivateUse1
_record = profiler.record_function
_enter, _exit = _record.__enter__, _record.__exit__
_running: list[Ranges] = []
_thread = threading.local()


class Range:
    """A range that was entered while a profiler ran."""

    def __init__(self, start: Moment) -> None:
        self.start = start
        self.end: Moment | None = None
        self.inner: list[Range] = []

    @property
    def busy_s(self) -> float:
        return self.end.busy_s - self.start.busy_s if self.end is not None else 0.0

    @property
    def own_s(self) -> float:
        """Without the ranges inside."""
        return self.busy_s - sum(inner.busy_s for inner in self.inner)


class Ranges:
    """Of one run of a profiler, by name and in the order in which they were entered."""

    def __init__(self) -> None:
        self.by_name: defaultdict[str, list[Range]] = defaultdict(list)


def _enter_marked(self: Any) -> Any:
    if bound.sink is not None:
        entered = Range(bound.sink.mark(settle=True, index=current()))
        outer: list[Range] = _thread.__dict__.setdefault("open", [])
        if outer:
            outer[-1].inner.append(entered)
        outer.append(entered)
        self._remora_range = entered
        for ranges in _running:
            ranges.by_name[self.name].append(entered)
    return _enter(self)


def _exit_marked(self: Any, *error: Any) -> Any:
    entered = self.__dict__.pop("_remora_range", None)
    if entered is not None:
        outer = _thread.open
        while outer and outer.pop() is not entered:
            pass
        if bound.sink is not None:
            entered.end = bound.sink.mark(settle=True, index=entered.start.index)
    return _exit(self, *error)


def _begin(self: Any) -> None:
    if self.use_device == "remora":
        self._remora_ranges = Ranges()
        _running.append(self._remora_ranges)
        _record.__enter__, _record.__exit__ = _enter_marked, _exit_marked  # type: ignore[method-assign]


def _end(self: Any) -> None:
    ranges = self.__dict__.get("_remora_ranges")
    if ranges in _running:
        _running.remove(ranges)
    if not _running:
        _record.__enter__, _record.__exit__ = _enter, _exit  # type: ignore[method-assign]


def _attach(self: Any) -> None:
    """Gives the events of ranges the executor's time, in microseconds, as a kernel, and that an event of the device."""
    ranges = self.__dict__.pop("_remora_ranges", None)
    if ranges is None:
        return
    events = sorted(self._function_events, key=lambda event: event.time_range.start)
    left = {name: iter(entered) for name, entered in ranges.by_name.items()}
    for event in events:
        entered = next(left.get(event.name, iter(())), None)
        if entered is not None and entered.own_s > 0:
            name, start_us, own_us = f"{event.name} (executor)", event.time_range.start, entered.own_s * 1e6
            event.append_kernel(name, 0, own_us)
            there = FunctionEvent(
                0,
                name,
                0,
                start_us,
                start_us + own_us,
                stack=[],
                device_type=_DEVICE_TYPE,
                use_device="remora",
            )
            self._function_events.append(there)


def follow_profiler() -> None:
    profile = profiler.profile
    if hasattr(profile._start_trace, _MARK):
        return
    start, leave, ensure = profile._start_trace, profile.__exit__, profile._ensure_function_events

    def _start_trace(self: Any) -> Any:
        _begin(self)
        return start(self)

    def __exit__(self: Any, *error: Any) -> Any:  # noqa: N807
        try:
            return leave(self, *error)  # waits for the executor, and so for the marks
        finally:
            _end(self)

    def _ensure_function_events(self: Any) -> Any:
        result = ensure(self)
        _attach(self)
        return result

    setattr(_start_trace, _MARK, True)
    profile._start_trace, profile.__exit__ = _start_trace, __exit__  # type: ignore[method-assign]
    profile._ensure_function_events = _ensure_function_events  # type: ignore[method-assign]


def probe_profiler() -> str | None:
    if torch.profiler.ProfilerActivity.PrivateUse1 not in torch.profiler.supported_activities():
        return "PyTorch's profiler knows no activity of the device"
    return None if hasattr(profiler.profile._start_trace, _MARK) else "torch.profiler shows no remote time"
