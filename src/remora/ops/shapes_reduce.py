"""Shape rules of reductions, scans and normalisations. Results are contiguous unless said otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from remora.ops.layout import Constants, Meta, Shape, contiguous, fresh, wrap


def reduced(shape: Shape, dim: Sequence[int] | None, keepdim: bool) -> Shape | None:
    """`shape` without the dimensions `dim`; no dimensions means all of them."""
    ndim = len(shape)
    dims = {wrap(d, ndim) for d in dim} if dim else set(range(ndim))
    if None in dims or (dim and len(dims) != len(dim)):
        return None
    if keepdim:
        return tuple([1 if i in dims else size for i, size in enumerate(shape)])
    return tuple([size for i, size in enumerate(shape) if i not in dims])


def total(
    c: Constants, x: Meta, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: object = None
) -> Meta | None:
    """Sum: integers and bool add up in int64."""
    if dtype is None:
        dtype = x.dtype if x.dtype in c.floating else c.int64 if _counts(c, x) else None
    shape = reduced(x.shape, dim, keepdim)
    return fresh(shape, dtype) if shape is not None and dtype is not None else None


def total_all(c: Constants, x: Meta, *, dtype: object = None) -> Meta | None:
    return total(c, x, None, dtype=dtype)


def mean(
    c: Constants, x: Meta, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: object = None
) -> Meta | None:
    kind = x.dtype if dtype is None else dtype
    shape = reduced(x.shape, dim, keepdim)
    return fresh(shape, kind) if shape is not None and kind in c.floating else None


def mean_all(c: Constants, x: Meta, *, dtype: object = None) -> Meta | None:
    return mean(c, x, None, dtype=dtype)


def extreme_all(c: Constants, x: Meta) -> Meta | None:
    return fresh((), x.dtype) if 0 not in x.shape and (x.dtype in c.floating or _counts(c, x)) else None


def extreme_index(c: Constants, x: Meta, dim: int | None = None, keepdim: bool = False) -> Meta | None:
    if 0 in x.shape or not (x.dtype in c.floating or x.dtype in c.integral):
        return None
    shape = reduced(x.shape, None if dim is None else (dim,), keepdim)
    return fresh(shape, c.int64) if shape is not None else None


def extreme(c: Constants, x: Meta, dim: int, keepdim: bool = False) -> tuple[Meta, Meta] | None:
    if 0 in x.shape or not (x.dtype in c.floating or x.dtype in c.integral):
        return None
    shape = reduced(x.shape, (dim,), keepdim)
    return (fresh(shape, x.dtype), fresh(shape, c.int64)) if shape is not None else None


def truth(c: Constants, x: Meta) -> Meta | None:
    return fresh((), c.bool) if x.dtype == c.bool else None


def truth_dim(c: Constants, x: Meta, dim: int, keepdim: bool = False) -> Meta | None:
    shape = reduced(x.shape, (dim,), keepdim)
    return fresh(shape, c.bool) if shape is not None and x.dtype == c.bool else None


def scan(c: Constants, x: Meta, dim: int, *, dtype: object = None) -> Meta | None:
    if dtype is None:
        dtype = x.dtype if x.dtype in c.floating else c.int64 if _counts(c, x) else None
    return fresh(x.shape, dtype) if dtype is not None and wrap(dim, len(x.shape)) is not None else None


def softmax(c: Constants, x: Meta, dim: int, dtype: object = None) -> Meta | None:
    kind = x.dtype if dtype is None else dtype
    return fresh(x.shape, kind) if kind in c.floating and wrap(dim, len(x.shape)) is not None else None


def softmax_kernel(c: Constants, x: Meta, dim: int, half_to_float: bool) -> Meta | None:
    return None if half_to_float else softmax(c, x, dim)


def layer_norm(
    c: Constants,
    x: Meta,
    normalized_shape: Sequence[int],
    weight: Meta | None = None,
    bias: Meta | None = None,
    eps: float = 1e-05,
    cudnn_enable: bool = True,
) -> Meta | None:
    return fresh(x.shape, x.dtype) if _fits(c, x, normalized_shape, weight, bias) else None


def rms_norm(
    c: Constants,
    x: Meta,
    normalized_shape: Sequence[int],
    weight: Meta | None = None,
    eps: float | None = None,
) -> Meta | None:
    """Only for contiguous inputs: off CPU it is one kernel, on CPU a chain of elementwise ops."""
    if x.stride != contiguous(x.shape) or not _fits(c, x, normalized_shape, weight):
        return None
    return fresh(x.shape, x.dtype)


def native_layer_norm(
    c: Constants,
    x: Meta,
    normalized_shape: Sequence[int],
    weight: Meta | None,
    bias: Meta | None,
    eps: float,
) -> tuple[Meta, Meta, Meta] | None:
    """Not for narrow dtypes, whose statistics have another dtype on each device."""
    if x.dtype not in c.wide or not _fits(c, x, normalized_shape, weight, bias):
        return None
    lead = len(x.shape) - len(normalized_shape)
    statistic = fresh(x.shape[:lead] + (1,) * len(normalized_shape), x.dtype)
    return fresh(x.shape, x.dtype), statistic, statistic


def _fits(c: Constants, x: Meta, normalized_shape: Sequence[int], *affine: Meta | None) -> bool:
    normalized = tuple(normalized_shape)
    return (
        x.dtype in c.floating
        and bool(normalized)
        and x.shape[-len(normalized) :] == normalized
        and prod(x.shape) > 0
        and all(w is None or (w.dtype == x.dtype and w.shape == normalized) for w in affine)
    )


def _counts(c: Constants, x: Meta) -> bool:
    return x.dtype in c.integral or x.dtype == c.bool


RULES: dict[str, Any] = {
    **{f"aten.{name}.default": extreme_all for name in ("max", "min")},
    **{f"aten.{name}.dim": extreme for name in ("max", "min")},
    **{f"aten.{name}.default": extreme_index for name in ("argmax", "argmin")},
    **{f"aten.{name}.default": truth for name in ("all", "any")},
    **{f"aten.{name}.dim": truth_dim for name in ("all", "any")},
    **{f"aten.{name}.int": softmax for name in ("softmax", "log_softmax")},
    **{f"aten.{name}.default": softmax_kernel for name in ("_softmax", "_log_softmax")},
    "aten.cumsum.default": scan,
    "aten.layer_norm.default": layer_norm,
    "aten.mean.default": mean_all,
    "aten.mean.dim": mean,
    "aten.native_layer_norm.default": native_layer_norm,
    "aten.rms_norm.default": rms_norm,
    "aten.sum.default": total_all,
    "aten.sum.dim_IntList": total,
}
