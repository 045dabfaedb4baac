"""Shape rules of products, attention, joins and look-ups."""

# B batch, H heads, T query tokens, S key tokens, D head dim of the values

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remora.ops.layout import (
    Constants,
    Meta,
    Shape,
    broadcast,
    contiguous,
    fresh,
    suggests_channels_last,
    wrap,
)


def mm(c: Constants, a: Meta, b: Meta) -> Meta | None:
    return _product(c, a, b, 2)


def bmm(c: Constants, a: Meta, b: Meta) -> Meta | None:
    return _product(c, a, b, 3)


def _product(c: Constants, a: Meta, b: Meta, ndim: int) -> Meta | None:
    if len(a.shape) != ndim or len(b.shape) != ndim or not _joins(c, a, b):
        return None
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        return None
    return fresh(a.shape[:-1] + b.shape[-1:], a.dtype)


def _joins(c: Constants, *tensors: Meta) -> bool:
    dtype = tensors[0].dtype
    return dtype in c.floating and all(x.dtype == dtype for x in tensors)


def addmm(
    c: Constants, x: Meta, a: Meta, b: Meta, *, beta: int | float = 1, alpha: int | float = 1
) -> Meta | None:
    product = mm(c, a, b)
    if product is None or x.dtype != a.dtype or broadcast(x.shape, product.shape) != product.shape:
        return None
    return product


def linear(c: Constants, x: Meta, weight: Meta, bias: Meta | None = None) -> Meta | None:
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        return None
    if not _joins(c, x, weight) or (bias is not None and not _joins(c, x, bias)):
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return fresh(x.shape[:-1] + weight.shape[:1], x.dtype)


def matmul(c: Constants, a: Meta, b: Meta) -> Meta | None:
    """Not for a matrix by a batch, whose result may be a transposed view."""
    if not a.shape or not b.shape or not _joins(c, a, b) or len(b.shape) > 2 >= len(a.shape):
        return None
    if a.shape[-1] != b.shape[-2 if len(b.shape) > 1 else 0]:
        return None
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    if batch is None:
        return None
    rows = a.shape[-2:-1]
    columns = b.shape[-1:] if len(b.shape) > 1 else ()
    return fresh(batch + rows + columns, a.dtype)


def grouped_mm(
    c: Constants,
    a: Meta,
    b: Meta,
    offs: Meta | None = None,
    bias: Meta | None = None,
    out_dtype: object = None,
) -> Meta | None:
    """Products of groups: rows of `a` [T, D] by matrices `b` [G, D, O], and the like, which the ends in `offs` [G]
    part. CPUs take every floating dtype here, where PyTorch's meta kernel takes bfloat16 alone."""
    if not _joins(c, a, b) or bias is not None or out_dtype is not None or offs is None:
        return None
    if len(offs.shape) != 1 or a.shape[-1] != b.shape[-2]:
        return None
    match len(a.shape), len(b.shape):
        case 2, 3:
            shape: Shape = (a.shape[0], b.shape[2]) if b.shape[0] == offs.shape[0] else ()
        case 3, 2:
            shape = (a.shape[1], b.shape[1]) if a.shape[0] == offs.shape[0] else ()
        case 2, 2:
            shape = (offs.shape[0], a.shape[0], b.shape[1])
        case _:
            shape = ()
    return fresh(shape, a.dtype) if shape else None


def attention(
    c: Constants,
    query: Meta,
    key: Meta,
    value: Meta,
    attn_mask: Meta | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Meta | None:
    """Declared as a [B, T, H, D] buffer seen as [B, H, T, D], as flash kernels give it."""
    if not len(query.shape) == len(key.shape) == len(value.shape) == 4 or not _joins(c, query, key, value):
        return None
    b, h, t, d_query = query.shape
    b_key, h_key, s, d_key = key.shape
    d = value.shape[3]
    if (
        value.shape[:3] != key.shape[:3]
        or b != b_key
        or d_query != d_key
        or 0 in (b, h, h_key, t, s, d_query, d)
    ):
        return None
    if h != h_key and not (enable_gqa and h % h_key == 0):
        return None
    if attn_mask is not None and broadcast(attn_mask.shape, (b, h, t, s)) != (b, h, t, s):
        return None
    return Meta((b, h, t, d), (t * h * d, d, h * d, 1), 0, query.dtype)


def cat(c: Constants, tensors: Sequence[Meta], dim: int = 0) -> Meta | None:
    first = tensors[0]
    at = wrap(dim, len(first.shape))
    if at is None or not first.shape:
        return None
    head, tail, length = first.shape[:at], first.shape[at + 1 :], 0
    for x in tensors:
        if x.dtype != first.dtype or x.shape[:at] != head or x.shape[at + 1 :] != tail:
            return None
        if x.stride != contiguous(x.shape) and suggests_channels_last(x.shape, x.stride):
            return None
        length += x.shape[at]
    return fresh((*head, length, *tail), first.dtype)


def embedding(
    c: Constants,
    weight: Meta,
    indices: Meta,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Meta | None:
    if len(weight.shape) != 2 or not _indexes(c, indices):
        return None
    return fresh(indices.shape + weight.shape[1:], weight.dtype)


def index_select(c: Constants, x: Meta, dim: int, index: Meta) -> Meta | None:
    at = wrap(dim, len(x.shape))
    if at is None or not x.shape or len(index.shape) != 1 or not _indexes(c, index):
        return None
    return fresh(x.shape[:at] + index.shape + x.shape[at + 1 :], x.dtype)


def gather(c: Constants, x: Meta, dim: int, index: Meta, *, sparse_grad: bool = False) -> Meta | None:
    at = wrap(dim, len(x.shape))
    if at is None or index.dtype != c.int64 or len(index.shape) != len(x.shape):
        return None
    if any(i != at and a > b for i, (a, b) in enumerate(zip(index.shape, x.shape, strict=True))):
        return None
    return fresh(index.shape, x.dtype)


def index(c: Constants, x: Meta, indices: Sequence[Meta | None]) -> Meta | None:
    """Integer indices at neighbouring dimensions of a contiguous tensor."""
    at = [i for i, where in enumerate(indices) if where is not None]
    used = [where for where in indices if where is not None]
    if not at or len(indices) > len(x.shape) or at[-1] - at[0] + 1 != len(at):
        return None
    if 0 in x.shape or x.stride != contiguous(x.shape):
        return None
    if any(not _indexes(c, i) or 0 in i.shape or i.stride != contiguous(i.shape) for i in used):
        return None
    chosen: Shape | None = broadcast(*[i.shape for i in used])
    if chosen is None:
        return None
    return fresh(x.shape[: at[0]] + chosen + x.shape[at[-1] + 1 :], x.dtype)


def _indexes(c: Constants, index: Meta) -> bool:
    return index.dtype == c.int64


RULES: dict[str, Any] = {
    "aten._grouped_mm.default": grouped_mm,
    "aten.addmm.default": addmm,
    "aten.bmm.default": bmm,
    "aten.cat.default": cat,
    "aten.embedding.default": embedding,
    "aten.gather.default": gather,
    "aten.index.Tensor": index,
    "aten.index_select.default": index_select,
    "aten.linear.default": linear,
    "aten.matmul.default": matmul,
    "aten.mm.default": mm,
    "aten.scaled_dot_product_attention.default": attention,
}
