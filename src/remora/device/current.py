"""The current device: what "remora" without an index means, as `torch.cuda.set_device` says it for CUDA.

PyTorch's C++ asks nobody for it and takes index 0, in `.to("remora")` and `torch.tensor(…, device="remora")`. So
while the current device is another one, a mode gives such calls its index. While it is the first, nothing is between.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _len_torch_function_stack, _pop_mode, _push_mode
from torch.utils import _device
from torch.utils._device import DeviceContext

from remora.device.index import current, device_at, index_of, set_current
from remora.device.sink import bound

_thread = threading.local()  # its mode, while there is one


class _WithIndex(TorchFunctionMode):
    """Gives the device "remora" in a call the current index."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs and "device" in kwargs:
            kwargs = {**kwargs, "device": _indexed(kwargs["device"])}
        if func is torch.Tensor.to and len(args) > 1:
            args = (args[0], _indexed(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _indexed(device: Any) -> Any:
    if device == "remora" or (
        type(device) is torch.device and device.type == "remora" and device.index is None
    ):
        return device_at(current())
    return device


def set_device(device: Any) -> None:
    """From here on "remora" means this device, on this thread. Raises as index.index_of."""
    exchange(index_of(device))


def exchange(index: int) -> int:
    """Makes a device the current one; returns the index of the one before."""
    before = current()
    if bound.n_devices > 1:
        set_current(index)
    _put_mode(index != 0)
    return before


def _put_mode(wanted: bool) -> None:
    """Modes that others have entered stay above; only that of a default device has to be the lowest."""
    mode = _thread.__dict__.get("mode")
    if wanted is (mode is not None):
        return
    above = [_pop_mode() for _ in range(_len_torch_function_stack())]
    if above and isinstance(above[-1], DeviceContext) and _device.CURRENT_DEVICE is not None:
        _push_mode(above.pop())
    _thread.mode = _WithIndex() if wanted else None
    if wanted:
        _push_mode(_thread.mode)
    for other in reversed(above):
        if other is not mode:
            _push_mode(other)


class device:  # noqa: N801  # as torch.cuda.device
    """A `with` block on a device; None and -1 change nothing."""

    def __init__(self, device: Any) -> None:
        self.idx = index_of(device)
        self.prev_idx = -1

    def __enter__(self) -> None:
        self.prev_idx = exchange(self.idx)

    def __exit__(self, *error: object) -> None:
        exchange(self.prev_idx)


class device_of(device):  # noqa: N801
    """A `with` block on the device of a tensor, if it is on one of ours."""

    def __init__(self, obj: Any) -> None:
        super().__init__(obj.device if obj.device.type == "remora" else None)
