"""What a pickle of a remora tensor calls where it is loaded.

A module of its own that imports torch late: the process may have neither, and torch, when it is imported after
remora, registers the device at its end.
"""

from __future__ import annotations

from typing import Any


def storage(saved: bytes, index: int = 0) -> Any:
    """A storage on remora:index with these bytes."""
    import torch

    from remora.device.index import index_of
    from remora.device.storage import RemoraStorage
    from remora.ops.dtypes import tensor_from

    memory = tensor_from(saved, torch.uint8, (len(saved),)).untyped_storage()
    return RemoraStorage.holding(memory, index_of(index))


def typed_storage(saved: bytes, dtype: Any, index: int = 0) -> Any:
    there = storage(saved, index)
    from remora.device.storage import TypedStorage

    return TypedStorage(there, dtype)
