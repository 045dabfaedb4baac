"""Ops that are more than a row: they move data between client and executor."""

from __future__ import annotations

import sys
from typing import Any

import torch

from remora.device.across import moved
from remora.device.addresses import root_of
from remora.device.download import download
from remora.device.index import index_of
from remora.device.resize import SHAPE_CHANGES
from remora.device.shadow import known
from remora.device.sink import bound
from remora.device.tensor import RemoraTensor, view_of
from remora.device.upload import upload
from remora.errors import NotSupported
from remora.ops.layout import span_of

aten = torch.ops.aten
_DEPTH = 4  # frames from a record made here to the program: special, learn, record


def only_a_row(func: Any, args: Any, kwargs: Any) -> Any:
    """What is not special: NotImplemented, as a special op says for a call that moves no data."""
    return NotImplemented


def _item(func: Any, args: Any, kwargs: Any) -> Any:
    value = args[0]._value
    local = known(value)
    if local is not None:
        return local.item()
    return download(args[0]).item()


def _to_copy(func: Any, args: Any, kwargs: Any) -> Any:
    source = args[0]
    device = kwargs.get("device")
    target = torch.device(device) if device is not None else source.device
    rest = {
        name: value
        for name, value in kwargs.items()
        if name not in ("device", "non_blocking", "pin_memory", "layout") and value is not None
    }
    if isinstance(source, RemoraTensor):
        if target.type == "remora":
            index = index_of(target)
            if index != source._value.meta.index:
                return moved(source, index, _DEPTH, rest)
            if device is None and "non_blocking" not in kwargs:
                return NotImplemented
            from remora.device.dispatch import record

            return record(func, (), (source,), rest, _DEPTH)
        local = download(source)
        return func(local, **{**rest, "device": target}) if rest or target.type != "cpu" else local
    return NotImplemented


def _copy(func: Any, args: Any, kwargs: Any) -> Any:
    target, source = args[0], args[1]
    if not isinstance(target, RemoraTensor):
        return target.copy_(download(source))
    index = target._value.meta.index
    if isinstance(source, RemoraTensor):
        if source._value.meta.index != index:
            narrower = {"dtype": target.dtype} if target.dtype.itemsize < source.dtype.itemsize else None
            source = moved(source, index, _DEPTH, narrower)
        elif len(args) == 2:
            return NotImplemented
    else:
        source = source.to(target.dtype)
        if _fill_blank(target, source):
            return target
        source = upload(source, index)
    from remora.device.dispatch import record

    return record(aten.copy_.default, (), (target, source), {}, _DEPTH)


_BLANK = frozenset({"aten.empty.memory_format", "aten.empty_strided.default"})


def _fill_blank(target: RemoraTensor, source: torch.Tensor) -> bool:
    """`Tensor.to` makes an empty tensor and copies into it: then the upload itself becomes the value. One without
    elements, with which caches begin, is full already."""
    if target.shape != source.shape or target.stride() != source.stride() or target.storage_offset():
        return False
    if not source.numel():
        return True
    recorder, _ = bound.need()
    value = target._value
    # the tensor's, the recorder's, the one above, the call's: no alias sees the old value
    alone = sys.getrefcount(value) == 4
    if not alone or not recorder.take_back(value, _BLANK):
        return False
    target._value = upload(source, value.meta.index)._value
    return True


def _same(func: Any, args: Any, kwargs: Any) -> Any:
    """Another tensor for the same value: detach and alias cost no row."""
    source = args[0]
    same = view_of(source)(source._value)
    if source._is_view() or "_root" in source.__dict__:
        same._root = root_of(source)
    return same


def _itself(func: Any, args: Any, kwargs: Any) -> Any:
    return args[0]


def _equal(func: Any, args: Any, kwargs: Any) -> Any:
    first, second = args
    if first.shape != second.shape:
        return False
    return bool((first == second).all().item())


def _histc(func: Any, args: Any, kwargs: Any) -> Any:
    """Programs give whole numbers to every device but "cpu", whose kernel counts floats alone."""
    source = args[0]
    if source.is_floating_point() or bound.device_type != "cpu":
        return NotImplemented
    return func(source.float(), *args[1:], **kwargs).to(source.dtype)


def _is_same_size(func: Any, args: Any, kwargs: Any) -> Any:
    return args[0].shape == args[1].shape


def _has_same_storage_numel(func: Any, args: Any, kwargs: Any) -> Any:
    """Forward mode asks, to lay out a tangent as its primal. A view counts the storage of what it views."""

    def span(tensor: Any) -> int:
        meta = (tensor if tensor._base is None else tensor._base)._value.meta
        return meta.offset + span_of(meta.shape, meta.stride)

    return span(args[0]) == span(args[1])


def _no_need(func: Any, args: Any, kwargs: Any) -> None:
    """A value lives until the rows before its end have run, on whatever stream they were recorded."""


def _refuse_nested(func: Any, args: Any, kwargs: Any) -> Any:
    raise NotSupported(
        "a nested tensor on the remora device, which TransformerEncoder makes of a padding mask in evaluation; "
        "use TransformerEncoder(..., enable_nested_tensor=False), which gives the same where nothing is padded"
    )


SPECIAL: dict[Any, Any] = {
    aten._local_scalar_dense.default: _item,
    aten._to_copy.default: _to_copy,
    aten.copy_.default: _copy,
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.lift_fresh.default: _itself,
    aten.detach_.default: _itself,
    aten.equal.default: _equal,
    aten.histc.default: _histc,
    aten._has_same_storage_numel.default: _has_same_storage_numel,
    aten.is_same_size.default: _is_same_size,
    aten.record_stream.default: _no_need,
    aten._nested_tensor_from_mask_left_aligned.default: _refuse_nested,
    **SHAPE_CHANGES,
}
