"""What a pickle of a remora tensor calls where it is loaded.

A module of its own that imports torch late: the process may have neither, and torch, when it is imported after
remora, registers the device at its end.
"""

from __future__ import annotations

from typing import Any


def storage(saved: bytes) -> Any:
    """A storage on the device with these bytes."""
    import torch

    from remora.device.storage import RemoraStorage
    from remora.ops.dtypes import tensor_from

    return RemoraStorage.holding(tensor_from(saved, torch.uint8, (len(saved),)).untyped_storage())


def typed_storage(saved: bytes, dtype: Any) -> Any:
    there = storage(saved)
    from remora.device.storage import TypedStorage

    return TypedStorage(there, dtype)
