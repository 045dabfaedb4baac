"""From a value on the executor to a CPU tensor."""

from __future__ import annotations

import torch

from remora.capture.value import Value
from remora.device import ahead
from remora.device.meta import TensorMeta, dense_order, intern
from remora.device.shadow import known
from remora.device.sink import Fetched, bound
from remora.device.tensor import RemoraTensor
from remora.ops.dtypes import BY_NAME, tensor_from
from remora.ops.layout import Meta


def download(tensor: RemoraTensor) -> torch.Tensor:
    """A fresh CPU tensor with the value's data and the tensor's strides. Blocks, unless a shadow has it."""
    value = tensor._value
    local = known(value)
    if local is not None:
        return _restrided(local.clone(), value.meta)
    recorder, sink = bound.need()
    early = ahead.take(value, recorder.ops)
    if early is not None:
        return early
    company = [other._value for other in ahead.company(tensor) if known(other._value) is None]
    step = None if company else recorder.step
    batch = [value, *(company or ahead.guess(recorder, value))]
    found = [_local(each, there) for each, there in zip(batch, sink.fetch(batch), strict=True)]
    for other, local in zip(batch[1:], found[1:], strict=True):
        ahead.keep(other, local, recorder.ops, step)
    return found[0]


def _local(value: Value, fetched: Fetched) -> torch.Tensor:
    assert fetched.data is not None
    return _restrided(tensor_from(fetched.data, value.meta.dtype, tuple(value.meta.shape)), value.meta)


def _restrided(tensor: torch.Tensor, meta: TensorMeta) -> torch.Tensor:
    """The tensor in the memory layout that a local copy of one with this metadata has."""
    if tensor.stride() == meta.stride:
        return tensor
    example = meta.example()
    if tensor.is_contiguous() and example.is_contiguous():  # they differ where nothing is reached
        return tensor.as_strided(meta.shape, meta.stride)
    if dense_order(example) is None:
        return torch.empty_like(example, device="cpu").copy_(tensor)
    return torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype).copy_(tensor)


def described(values: list[Value], index: int) -> None:
    """Asks the executor for the metadata of values of a device that have none."""
    _, sink = bound.need()
    for value, fetched in zip(values, sink.fetch(values, describe=True), strict=True):
        dtype = BY_NAME[fetched.dtype]
        value.meta = intern(Meta(fetched.shape, fetched.stride, 0, dtype), 0, index)
