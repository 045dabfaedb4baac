"""Shape rules of views: results that share the storage of their input."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from remora.ops.layout import Constants, Meta, viewed_stride, wrap


def alias(c: Constants, x: Meta) -> Meta | None:
    return x


def view(c: Constants, x: Meta, size: Sequence[int]) -> Meta | None:
    shape, numel = tuple(size), prod(x.shape)
    if -1 in shape:
        known = -prod(shape)
        if known <= 0 or numel % known:
            return None
        shape = tuple(numel // known if s == -1 else s for s in shape)
    if prod(shape) != numel or any(s < 0 for s in shape):
        return None
    stride = viewed_stride(x.shape, x.stride, shape)
    return None if stride is None else Meta(shape, stride, x.offset, x.dtype)


def transpose(c: Constants, x: Meta, dim0: int, dim1: int) -> Meta | None:
    a, b = wrap(dim0, len(x.shape)), wrap(dim1, len(x.shape))
    if a is None or b is None:
        return None
    if a == b:
        return x
    shape, stride = list(x.shape), list(x.stride)
    shape[a], shape[b] = shape[b], shape[a]
    stride[a], stride[b] = stride[b], stride[a]
    return Meta(tuple(shape), tuple(stride), x.offset, x.dtype)


def matrix_transpose(c: Constants, x: Meta) -> Meta | None:
    return Meta(x.shape[::-1], x.stride[::-1], x.offset, x.dtype) if len(x.shape) <= 2 else None


def permute(c: Constants, x: Meta, dims: Sequence[int]) -> Meta | None:
    ndim = len(x.shape)
    order = [d + ndim if d < 0 else d for d in dims]
    if sorted(order) != list(range(ndim)):
        return None
    shape, stride = x.shape, x.stride
    return Meta(tuple([shape[d] for d in order]), tuple([stride[d] for d in order]), x.offset, x.dtype)


def slice_(
    c: Constants, x: Meta, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Meta | None:
    at = wrap(dim, len(x.shape))
    if at is None or not x.shape or step <= 0:
        return None
    low, high, _ = slice(start, end).indices(x.shape[at])
    length = max(-((low - high) // step), 0)
    shape, stride = list(x.shape), list(x.stride)
    shape[at] = length
    stride[at] *= step
    return Meta(tuple(shape), tuple(stride), x.offset + low * x.stride[at], x.dtype)


def select(c: Constants, x: Meta, dim: int, index: int) -> Meta | None:
    at = wrap(dim, len(x.shape))
    if at is None or not x.shape or not -x.shape[at] <= index < x.shape[at]:
        return None
    offset = x.offset + (index % x.shape[at]) * x.stride[at]
    return Meta(x.shape[:at] + x.shape[at + 1 :], x.stride[:at] + x.stride[at + 1 :], offset, x.dtype)


def unbind(c: Constants, x: Meta, dim: int = 0) -> tuple[Meta, ...] | None:
    at = wrap(dim, len(x.shape))
    if at is None or not x.shape:
        return None
    shape, stride, step = x.shape[:at] + x.shape[at + 1 :], x.stride[:at] + x.stride[at + 1 :], x.stride[at]
    return tuple([Meta(shape, stride, x.offset + i * step, x.dtype) for i in range(x.shape[at])])


def unsqueeze(c: Constants, x: Meta, dim: int) -> Meta | None:
    at = wrap(dim, len(x.shape) + 1)
    if at is None:
        return None
    step = x.shape[at] * x.stride[at] if at < len(x.shape) else 1
    return Meta((*x.shape[:at], 1, *x.shape[at:]), (*x.stride[:at], step, *x.stride[at:]), x.offset, x.dtype)


def squeeze(c: Constants, x: Meta) -> Meta | None:
    return _without(x, {i for i, size in enumerate(x.shape) if size == 1})


def squeeze_dim(c: Constants, x: Meta, dim: int) -> Meta | None:
    return squeeze_dims(c, x, (dim,))


def squeeze_dims(c: Constants, x: Meta, dim: Sequence[int]) -> Meta | None:
    dims = [wrap(d, len(x.shape)) for d in dim]
    if None in dims or len(set(dims)) != len(dims):
        return None
    return _without(x, {d for d in dims if d is not None and x.shape and x.shape[d] == 1})


def _without(x: Meta, dims: set[int]) -> Meta:
    kept = [i for i in range(len(x.shape)) if i not in dims]
    return Meta(tuple([x.shape[i] for i in kept]), tuple([x.stride[i] for i in kept]), x.offset, x.dtype)


def expand(c: Constants, x: Meta, size: Sequence[int], *, implicit: bool = False) -> Meta | None:
    lead = len(size) - len(x.shape)
    if lead < 0:
        return None
    shape, stride = list(size), [0] * len(size)
    for i in range(len(size) - 1, -1, -1):
        has = x.shape[i - lead] if i >= lead else 1
        step = x.stride[i - lead] if i >= lead else _lead_step(shape, stride, i)
        if shape[i] == -1 and i >= lead:
            shape[i] = has
        if shape[i] < 0 or (shape[i] != has and has != 1):
            return None
        stride[i] = step if shape[i] == has else 0
    if not x.shape:
        stride = [0] * len(size)
    return Meta(tuple(shape), tuple(stride), x.offset, x.dtype)


def _lead_step(shape: Sequence[int], stride: Sequence[int], i: int) -> int:
    return shape[i + 1] * stride[i + 1] if i + 1 < len(shape) else 1


def split(c: Constants, x: Meta, split_size: int, dim: int = 0) -> tuple[Meta, ...] | None:
    at = wrap(dim, len(x.shape))
    if at is None or not x.shape or split_size < 0 or (split_size == 0 and x.shape[at] != 0):
        return None
    whole = x.shape[at]
    sizes = [min(split_size, whole - low) for low in range(0, whole, split_size)] if whole else [0]
    return _pieces(x, sizes, at)


def split_with_sizes(c: Constants, x: Meta, sizes: Sequence[int], dim: int = 0) -> tuple[Meta, ...] | None:
    at = wrap(dim, len(x.shape))
    if at is None or not x.shape or sum(sizes) != x.shape[at] or any(s < 0 for s in sizes):
        return None
    return _pieces(x, sizes, at)


def _pieces(x: Meta, sizes: Sequence[int], at: int) -> tuple[Meta, ...]:
    pieces, offset, head, tail = [], x.offset, x.shape[:at], x.shape[at + 1 :]
    for size in sizes:
        pieces.append(Meta((*head, size, *tail), x.stride, offset, x.dtype))
        offset += size * x.stride[at]
    return tuple(pieces)


RULES: dict[str, Any] = {
    "aten._unsafe_view.default": view,
    "aten.alias.default": alias,
    "aten.detach.default": alias,
    "aten.expand.default": expand,
    "aten.permute.default": permute,
    "aten.select.int": select,
    "aten.slice.Tensor": slice_,
    "aten.split.Tensor": split,
    "aten.split_with_sizes.default": split_with_sizes,
    "aten.squeeze.default": squeeze,
    "aten.squeeze.dim": squeeze_dim,
    "aten.squeeze.dims": squeeze_dims,
    "aten.t.default": matrix_transpose,
    "aten.transpose.int": transpose,
    "aten.unbind.int": unbind,
    "aten.unsqueeze.default": unsqueeze,
    "aten.view.default": view,
}
