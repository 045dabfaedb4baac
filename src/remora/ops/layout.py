"""Shapes and strides of results: PyTorch's own layout algorithms, in Python and without torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

Shape = tuple[int, ...]


class Meta(NamedTuple):
    """A tensor without its data. `dtype` is opaque: it is only compared."""

    shape: Shape
    stride: Shape
    offset: int
    dtype: object


@dataclass(frozen=True, slots=True)
class Constants:
    """The torch constants that shape rules compare with.

    floating: real floating dtypes. wide: those of them that kernels do not accumulate in a wider dtype.
    integral: integer dtypes without bool. attention_like_query: attention's result is laid out as the CPU's.
    """

    bool: object
    int64: object
    floating: Collection[object]
    wide: Collection[object]
    integral: Collection[object]
    strided: object
    contiguous_format: object
    preserve_format: object
    attention_like_query: bool = False


@lru_cache(maxsize=1 << 14)
def contiguous(shape: Shape) -> Shape:
    """The strides of a fresh contiguous tensor."""
    stride, step = [1] * len(shape), 1
    for i in range(len(shape) - 1, -1, -1):
        stride[i] = step
        step *= max(shape[i], 1)
    return tuple(stride)


def fresh(shape: Shape, dtype: object) -> Meta:
    """A new contiguous tensor."""
    return Meta(shape, contiguous(shape), 0, dtype)


def wrap(dim: int, ndim: int) -> int | None:
    """`dim` counted from 0, or None if it is out of range. A 0-dim tensor has dim 0 and -1."""
    span = ndim or 1
    if dim < 0:
        dim += span
    return dim if 0 <= dim < span else None


@lru_cache(maxsize=1 << 14)
def broadcast(*shapes: Shape) -> Shape | None:
    """The shape that all `shapes` broadcast to, or None."""
    ndim = max(map(len, shapes))
    result = [1] * ndim
    for shape in shapes:
        for i, size in enumerate(shape, ndim - len(shape)):
            if size != 1 and size != result[i]:
                if result[i] != 1:
                    return None
                result[i] = size
    return tuple(result)


@lru_cache(maxsize=1 << 14)
def elementwise_stride(shape: Shape, operands: tuple[tuple[Shape, Shape], ...]) -> Shape:
    """Strides of the fresh result, of shape `shape`, of an elementwise op on (shape, stride) operands in
    the op's order; a Python number is the operand ((), ()). Source: ATen/TensorIterator.cpp, build().
    """
    if all(operand[0] == shape for operand in operands):
        if all(is_contiguous(*operand) for operand in operands):
            return contiguous(shape)
        if len(shape) == 4 and all(_is_channels_last(*operand) for operand in operands):
            return stride_of_order(shape, (1, 3, 2, 0))
        if len({stride for _, stride in operands}) == 1 and is_dense(*operands[0]):
            return operands[0][1]
    ndim = len(shape)
    strides = [_broadcast_stride(shape, *operand) for operand in operands]
    order = _fastest_first(shape, strides)
    if order == list(range(ndim - 1, -1, -1)):
        return contiguous(shape)
    stride, step = [0] * ndim, 1
    for dim in order:
        stride[dim] = step
        step *= shape[dim]
    return tuple(stride)


@lru_cache(maxsize=1 << 14)
def preserved_stride(shape: Shape, stride: Shape) -> Shape:
    """Strides of a copy that preserves the memory format. Source: ATen/ExpandUtils.cpp, infer_dense_strides."""
    if is_dense(shape, stride):
        return stride
    return stride_of_order(shape, _fastest_first(shape, [stride]))


@lru_cache(maxsize=1 << 14)
def viewed_stride(shape: Shape, stride: Shape, to: Shape) -> Shape | None:
    """Strides of a view as `to`, which has as many elements, or None if only a copy has that shape.
    Source: ATen/TensorUtils.cpp, computeStride_impl.
    """
    numel = prod(shape)
    if numel == 0:
        return stride if shape == to else contiguous(to)
    if not shape:
        return (1,) * len(to)
    result, view_dim = [0] * len(to), len(to) - 1
    chunk_step, chunk_numel, view_numel = stride[-1], 1, 1
    for dim in range(len(shape) - 1, -1, -1):
        chunk_numel *= shape[dim]
        if dim == 0 or (shape[dim - 1] != 1 and stride[dim - 1] != chunk_numel * chunk_step):
            while view_dim >= 0 and (view_numel < chunk_numel or to[view_dim] == 1):
                result[view_dim] = view_numel * chunk_step
                view_numel *= to[view_dim]
                view_dim -= 1
            if view_numel != chunk_numel:
                return None
            if dim > 0:
                chunk_step, chunk_numel, view_numel = stride[dim - 1], 1, 1
    return tuple(result) if view_dim == -1 else None


def is_contiguous(shape: Shape, stride: Shape) -> bool:
    """As `Tensor.is_contiguous`: strides of dimensions of size 1 do not matter."""
    if stride == contiguous(shape) or 0 in shape:
        return True
    return all(s == 1 or a == b for s, a, b in zip(shape, stride, contiguous(shape), strict=True))


def is_dense(shape: Shape, stride: Shape) -> bool:
    """Non-overlapping and dense: a permutation of a contiguous tensor."""
    if is_contiguous(shape, stride):
        return True
    step = 1
    for a, size in sorted((a, size) for size, a in zip(shape, stride, strict=True) if size > 1):
        if a != step:
            return False
        step *= size
    return True


def span_of(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last in memory, both counted; 0 for an empty tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def end_of(shape: Sequence[int], stride: Sequence[int], offset: int) -> int:
    """Elements from the start of the memory to the last one of a tensor; 0 for an empty tensor."""
    span = span_of(shape, stride)
    return offset + span if span else 0


def suggests_channels_last(shape: Shape, stride: Shape) -> bool:
    """Whether the strides alone look like channels-last, for 4 or 5 dimensions.
    Source: c10/core/MemoryFormat.h, is_channels_last_strides_2d_s4.
    """
    if len(shape) not in (4, 5) or stride[1] == 0:
        return False
    low = 0
    for dim in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[dim] == 0 or stride[dim] < low or (dim == 0 and low == stride[1]):
            return False
        low = stride[dim] * max(shape[dim], 1)
    return True


def _is_channels_last(shape: Shape, stride: Shape) -> bool:
    expected = stride_of_order(shape, (1, 3, 2, 0))
    return all(s == 1 or a == b for s, a, b in zip(shape, stride, expected, strict=True))


def stride_of_order(shape: Shape, order: Sequence[int]) -> Shape:
    """The strides of a fresh tensor whose dimensions lie in `order`, the fastest first."""
    stride, step = [0] * len(shape), 1
    for dim in order:
        stride[dim] = step
        step *= max(shape[dim], 1)
    return tuple(stride)


def _broadcast_stride(shape: Shape, operand: Shape, stride: Shape) -> list[int]:
    lead = len(shape) - len(operand)
    kept = [0 if s == 1 and shape[lead + i] != 1 else stride[i] for i, s in enumerate(operand)]
    return [0] * lead + kept


def _fastest_first(shape: Shape, strides: Sequence[Sequence[int]]) -> list[int]:
    """Dimensions from the fastest to the slowest, by an insertion sort whose comparison may be undecided.
    Source: TensorIteratorBase::reorder_dimensions."""
    order = list(range(len(shape) - 1, -1, -1))
    for i in range(1, len(order)):
        at = i
        for before in range(i - 1, -1, -1):
            verdict = _compare(shape, strides, order[before], order[at])
            if verdict > 0:
                order[before], order[at] = order[at], order[before]
                at = before
            elif verdict < 0:
                break
    return order


def _compare(shape: Shape, strides: Sequence[Sequence[int]], a: int, b: int) -> int:
    """1 if dimension `a` is slower than `b`, -1 if faster, 0 if no operand decides."""
    for stride in strides:
        if stride[a] == 0 or stride[b] == 0:
            continue
        if stride[a] != stride[b]:
            return -1 if stride[a] < stride[b] else 1
        if shape[a] > shape[b]:
            return 1
    return 0
