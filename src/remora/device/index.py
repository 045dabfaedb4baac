"""Which devices there are, and which one is meant: one for each executor where the program places, else one."""

from __future__ import annotations

import threading
from typing import Any

import torch

from remora.device.sink import bound

_devices: list[torch.device] = []
_thread = (
    threading.local()
)  # of each thread: the session in which it has set a device, and the device's index


def local_device(device: Any) -> torch.device:
    """The device that a program means; replaced where other names mean this device too."""
    return torch.device(device)


def device_at(index: int) -> torch.device:
    """`remora:index`; always the same object."""
    while len(_devices) <= index:
        _devices.append(torch.device("remora", len(_devices)))
    return _devices[index]


def current() -> int:
    """The index that "remora" alone means, on this thread."""
    if bound.n_devices == 1:
        return 0
    session, index = getattr(_thread, "current", ("", 0))
    return index if bound.recorder is not None and session == bound.recorder.session else 0


def set_current(index: int) -> None:
    """What `current` says from here on, while the session lasts."""
    assert bound.recorder is not None
    _thread.current = bound.recorder.session, index


def index_of(device: Any) -> int:
    """The index of a device that a program names; None, and a name without an index, mean the current one.

    Raises:
        ValueError: it is a device of another kind.
        RuntimeError: there is no such device; says how many there are.
    """
    index = device
    if device is not None and not isinstance(device, int):
        device = local_device(device)
        if device.type != "remora":
            raise ValueError(f"Expected a remora device, but got: {device}")
        index = device.index
    if index is None or index == -1:
        return current()
    n = bound.n_devices
    if not 0 <= index < n:
        raise RuntimeError(f"remora:{index} does not exist: {_what_there_is(n)}")
    return index  # type: ignore[no-any-return]


def resolved(device: Any) -> torch.device:
    """The device that a program names, with its index. Raises as `index_of`."""
    return device_at(index_of(device))


def _what_there_is(n: int) -> str:
    if n > 1:
        return f"this session has {n} executors, remora:0 to remora:{n - 1}"
    return "this session has one executor, remora:0"
