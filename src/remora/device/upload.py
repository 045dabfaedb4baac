"""From a CPU tensor to a value on the executor."""

from __future__ import annotations

import torch

from remora.capture.value import Kept
from remora.device.mapped import has_gone
from remora.device.meta import contiguous_meta, dense_order, intern
from remora.device.shadow import Shadow, worth_keeping
from remora.device.sink import bound
from remora.device.tensor import RemoraTensor, wrap
from remora.errors import NotSupported
from remora.ops.dtypes import bytes_of, dtype_name
from remora.ops.layout import Meta
from remora.wire.limits import MAX_INLINE_NBYTES

aten = torch.ops.aten


def upload(source: torch.Tensor, index: int) -> RemoraTensor:
    """A tensor on remora:index with the bytes that `source` has now, and its strides if it is dense."""
    from remora.device.dispatch import record

    if source.layout != torch.strided or source.is_quantized or source.is_nested:
        raise NotSupported(
            f"a {source.layout} tensor cannot travel to an executor; convert it with .to_dense()"
        )
    recorder, sink = bound.need()
    if source.is_meta and sink.computes:
        raise NotImplementedError("Cannot copy out of meta tensor; no data! Use torch.nn.Module.to_empty()")
    source = source.detach()
    if source.device.type not in ("cpu", "meta"):
        source = source.cpu()
    source = source.resolve_conj().resolve_neg()
    order = None if source.is_contiguous() else dense_order(source)
    dense = order is not None or source.is_contiguous()
    base = source.contiguous() if order is None else source.permute(order)
    name, shape = dtype_name(base.dtype), tuple(base.shape)
    data = memoryview(b"") if base.is_meta else bytes_of(base)
    with recorder.lock:
        if base.numel() * base.itemsize <= MAX_INLINE_NBYTES:
            segment = sink.put(name, shape, bytes(data), index)
        else:
            segment = sink.store(name, shape, data, index)
            if data:
                has_gone(base.data_ptr(), data.nbytes)
        value = Kept(recorder, segment, 0, contiguous_meta(shape, base.dtype).at(index), uploaded=True)
        if worth_keeping(base) and not base.is_meta:
            value.shadow = Shadow(base.clone())
        result = wrap(value)
        if order is not None:
            inverse = [order.index(dim) for dim in range(len(order))]
            result = record(aten.permute.default, (), (result, inverse), {})
        if dense:  # where nothing is reached, strides may be any, and are those of the source
            value = result._value
            value.meta = intern(Meta(tuple(source.shape), source.stride(), 0, source.dtype), 0, index)
            result = wrap(value)
    return result
