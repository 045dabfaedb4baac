"""Numbers that a graph reads from the device, told to it before each replay: what differs from run to run.

They are written to pinned memory and copied on the stream, so the host waits for nothing. A place there is written
again only when the copy from it is over.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

PLACES = 64  # runs that may be on their way


class Table:
    """rows of `width` int64 each; `on_device` is where graphs read them."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.on_device = torch.zeros(rows, width, dtype=torch.int64, device=device)
        on_gpu = device.type == "cuda"
        self._staged = torch.empty(PLACES, rows, width, dtype=torch.int64, pin_memory=on_gpu)
        self._numbers = (ctypes.c_int64 * self._staged.numel()).from_address(self._staged.data_ptr())
        self._copied: list[Any] = [torch.cuda.Event() for _ in range(2)] if on_gpu else []
        self._count = rows * width
        self._at = 0

    def tell(self, numbers: list[int]) -> None:
        """All rows, one after another."""
        at, self._at = self._at, (self._at + 1) % PLACES
        half = PLACES // 2
        if self._copied and at % half == 0:
            self._copied[at // half].synchronize()  # of the copies from this half, the last time
        self._numbers[at * self._count : (at + 1) * self._count] = numbers
        self.on_device.copy_(self._staged[at], non_blocking=True)
        if self._copied and at % half == half - 1:
            self._copied[at // half].record()
