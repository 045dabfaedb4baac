"""Shape rules of factories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remora.ops.layout import Constants, Meta, fresh, preserved_stride


def filled(
    c: Constants,
    size: Sequence[int],
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: bool | None = None,
) -> Meta | None:
    return _new(c, size, dtype, layout)


def full(
    c: Constants,
    size: Sequence[int],
    fill_value: object,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: bool | None = None,
) -> Meta | None:
    return _new(c, size, dtype, layout)


def empty(
    c: Constants,
    size: Sequence[int],
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: bool | None = None,
    memory_format: object = None,
) -> Meta | None:
    return _new(c, size, dtype, layout) if memory_format in (None, c.contiguous_format) else None


def arange(
    c: Constants,
    end: int,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: bool | None = None,
) -> Meta | None:
    return _arange(c, 0, end, 1, dtype, layout)


def arange_start(
    c: Constants,
    start: int,
    end: int,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: bool | None = None,
) -> Meta | None:
    return _arange(c, start, end, 1, dtype, layout)


def arange_step(
    c: Constants,
    start: int,
    end: int,
    step: int = 1,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: bool | None = None,
) -> Meta | None:
    return _arange(c, start, end, step, dtype, layout)


def _arange(c: Constants, start: int, end: int, step: int, dtype: object, layout: object) -> Meta | None:
    """Only whole numbers: with floats the count depends on rounding."""
    if not type(start) is type(end) is type(step) is int or step == 0 or (end - start) * step < 0:
        return None
    return _new(c, (-((start - end) // step),), c.int64 if dtype is None else dtype, layout)


def new_filled(
    c: Constants,
    x: Meta,
    size: Sequence[int],
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: bool | None = None,
) -> Meta | None:
    return _new(c, size, x.dtype if dtype is None else dtype, layout)


def new_full(
    c: Constants,
    x: Meta,
    size: Sequence[int],
    fill_value: object,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: bool | None = None,
) -> Meta | None:
    return _new(c, size, x.dtype if dtype is None else dtype, layout)


def like(
    c: Constants,
    x: Meta,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: bool | None = None,
    memory_format: object = None,
) -> Meta | None:
    if layout not in (None, c.strided):
        return None
    kind = x.dtype if dtype is None else dtype
    if memory_format == c.contiguous_format:
        return fresh(x.shape, kind)
    if memory_format not in (None, c.preserve_format):
        return None
    return Meta(x.shape, preserved_stride(x.shape, x.stride), 0, kind)


def full_like(
    c: Constants,
    x: Meta,
    fill_value: object,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: bool | None = None,
    memory_format: object = None,
) -> Meta | None:
    return like(c, x, dtype=dtype, layout=layout, memory_format=memory_format)


def _new(c: Constants, size: Sequence[int], dtype: object, layout: object) -> Meta | None:
    """None without a dtype: the default dtype is the program's to set."""
    if dtype is None or (layout is not None and layout != c.strided):
        return None
    shape = tuple(size)
    return fresh(shape, dtype) if not shape or min(shape) >= 0 else None


RULES: dict[str, Any] = {
    **{f"aten.{name}.default": filled for name in ("ones", "zeros")},
    **{f"aten.new_{name}.default": new_filled for name in ("empty", "ones", "zeros")},
    **{f"aten.{name}_like.default": like for name in ("empty", "ones", "zeros")},
    "aten.arange.default": arange,
    "aten.arange.start": arange_start,
    "aten.arange.start_step": arange_step,
    "aten.empty.memory_format": empty,
    "aten.full.default": full,
    "aten.full_like.default": full_like,
    "aten.new_full.default": new_full,
}
