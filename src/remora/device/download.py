"""From a value on the executor to a CPU tensor."""

from __future__ import annotations

import torch

from remora.capture.value import Value
from remora.device.meta import contiguous_meta, intern
from remora.device.shadow import known
from remora.device.sink import bound
from remora.device.tensor import RemoraTensor
from remora.ops.dtypes import BY_NAME, tensor_from
from remora.ops.layout import Meta


def download(tensor: RemoraTensor) -> torch.Tensor:
    """A fresh CPU tensor with the value's data and the tensor's strides. Blocks, unless a shadow has it."""
    value = tensor._value
    local = known(value)
    if local is not None:
        return local.clone()
    _, sink = bound.need()
    (fetched,) = sink.fetch([value])
    assert fetched.data is not None
    meta = value.meta
    flat = tensor_from(fetched.data, meta.dtype, tuple(meta.shape))
    if meta is contiguous_meta(meta.shape, meta.dtype) or flat.stride() == meta.stride:
        return flat
    return torch.empty_like(meta.example(), device="cpu").copy_(
        flat
    )  # keeps dense strides, as a local copy does


def described(values: list[Value]) -> None:
    """Asks the executor for the metadata of values that have none."""
    _, sink = bound.need()
    for value, fetched in zip(values, sink.fetch(values, describe=True), strict=True):
        dtype = BY_NAME[fetched.dtype]
        value.meta = intern(Meta(fetched.shape, fetched.stride, 0, dtype))
