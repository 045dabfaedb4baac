"""Which devices there are: one, while a session has one executor."""

from __future__ import annotations

from typing import Any

import torch


def only_device(device: Any) -> int:
    """0, the index of the only device. Raises RuntimeError for another one."""
    index = device
    if device is not None and not isinstance(device, int):
        device = torch.device(device)
        if device.type != "remora":
            raise ValueError(f"Expected a remora device, but got: {device}")
        index = device.index
    if index not in (None, -1, 0):
        raise RuntimeError(f"remora:{index} does not exist: this session has one executor, remora:0")
    return 0
