"""Shape rules of elementwise ops and copies."""

from __future__ import annotations

from typing import Any

from remora.ops.layout import (
    Constants,
    Meta,
    broadcast,
    contiguous,
    elementwise_stride,
    fresh,
    preserved_stride,
)

Operand = Meta | int | float | bool


def elementwise(dtype: object, *operands: Operand) -> Meta | None:
    """The fresh result of an op that goes through TensorIterator."""
    tensors = [x for x in operands if isinstance(x, Meta)]
    shape = tensors[0].shape
    if any(x.shape != shape for x in tensors):
        common = broadcast(*[x.shape for x in tensors])
        if common is None:
            return None
        shape = common
    if 0 not in shape and _are_contiguous(*tensors):
        return Meta(shape, contiguous(shape), 0, dtype)
    layouts = tuple((x.shape, x.stride) if isinstance(x, Meta) else ((), ()) for x in operands)
    return Meta(shape, elementwise_stride(shape, layouts), 0, dtype)


def promoted(c: Constants, x: Meta, other: object) -> object:
    """The common dtype of a tensor and a tensor or number, or None where it is not one of theirs."""
    if isinstance(other, Meta):
        if x.dtype == other.dtype:
            return x.dtype
        if bool(x.shape) == bool(other.shape):
            return None
        wide, narrow = (x, other) if x.shape else (other, x)
        return wide.dtype if _rank(c, narrow.dtype) <= _rank(c, wide.dtype) else None
    rank = {bool: 0, int: 1, float: 2}.get(type(other), 3)
    return x.dtype if rank <= _rank(c, x.dtype) else None


def _are_contiguous(*operands: Operand) -> bool:
    return all(not isinstance(x, Meta) or x.stride == contiguous(x.shape) for x in operands)


def _rank(c: Constants, dtype: object) -> int:
    if dtype in c.floating:
        return 2
    if dtype in c.integral:
        return 1
    return 0 if dtype == c.bool else 9


def _is_real(c: Constants, dtype: object) -> bool:
    return dtype in c.floating or dtype in c.integral or dtype == c.bool


# One tensor.


def float_unary(c: Constants, x: Meta) -> Meta | None:
    return elementwise(x.dtype, x) if x.dtype in c.floating else None


def signed_unary(c: Constants, x: Meta) -> Meta | None:
    return elementwise(x.dtype, x) if x.dtype in c.floating or x.dtype in c.integral else None


def bitwise_unary(c: Constants, x: Meta) -> Meta | None:
    return elementwise(x.dtype, x) if x.dtype in c.integral or x.dtype == c.bool else None


def logical_unary(c: Constants, x: Meta) -> Meta | None:
    return elementwise(c.bool, x) if _is_real(c, x.dtype) else None


def gelu(c: Constants, x: Meta, *, approximate: str = "none") -> Meta | None:
    return float_unary(c, x)


def power(c: Constants, x: Meta, exponent: Operand) -> Meta | None:
    return elementwise(x.dtype, x) if x.dtype in c.floating and isinstance(exponent, (int, float)) else None


def clamp(c: Constants, x: Meta, low: Operand | None = None, high: Operand | None = None) -> Meta | None:
    if (low is None and high is None) or x.dtype == c.bool or not _is_real(c, x.dtype):
        return None
    if any(bound is not None and promoted(c, x, bound) is None for bound in (low, high)):
        return None
    return elementwise(x.dtype, x)


# Two tensors, or a tensor and a number.


def add(c: Constants, x: Meta, other: Operand, alpha: int | float = 1) -> Meta | None:
    if isinstance(alpha, float) and x.dtype not in c.floating:
        return None
    return multiply(c, x, other)


def add_tensor(c: Constants, x: Meta, other: Operand, *, alpha: int | float = 1) -> Meta | None:
    return add(c, x, other, alpha)


def multiply(c: Constants, x: Meta, other: Operand) -> Meta | None:
    if not isinstance(x, Meta) or isinstance(other, bool):
        return None
    dtype = promoted(c, x, other)
    return elementwise(dtype, x, other) if dtype in c.floating or dtype in c.integral else None


def divide(c: Constants, x: Meta, other: Operand) -> Meta | None:
    if not isinstance(x, Meta):
        return None
    dtype = promoted(c, x, other)
    return elementwise(dtype, x, other) if dtype in c.floating else None


def divide_mode(c: Constants, x: Meta, other: Operand, *, rounding_mode: str | None) -> Meta | None:
    return divide(c, x, other) if rounding_mode is None else multiply(c, x, other)


def compare(c: Constants, x: Meta, other: Operand) -> Meta | None:
    if not isinstance(x, Meta) or not _is_real(c, x.dtype):
        return None
    if isinstance(other, Meta) and not _is_real(c, other.dtype):
        return None
    if promoted(c, x, other) is None and not _are_contiguous(x, other):
        return None  # torch converts an operand first, and the copy may have other strides
    return None if isinstance(other, complex) else elementwise(c.bool, x, other)


def bitwise(c: Constants, x: Meta, other: Operand) -> Meta | None:
    if not isinstance(x, Meta):
        return None
    dtype = promoted(c, x, other)
    return elementwise(dtype, x, other) if dtype in c.integral or dtype == c.bool else None


def where(c: Constants, condition: Meta, x: Operand, other: Operand) -> Meta | None:
    if condition.dtype != c.bool or not isinstance(x, Meta) or not isinstance(other, Meta):
        return None
    dtype = promoted(c, x, other)
    return elementwise(dtype, condition, x, other) if dtype is not None else None


def masked_fill(c: Constants, x: Meta, mask: Meta, value: Operand) -> Meta | None:
    """The result is a contiguous copy, whatever the layout of the inputs."""
    if mask.dtype != c.bool or promoted(c, x, value) is None or (isinstance(value, Meta) and value.shape):
        return None
    shape = broadcast(x.shape, mask.shape)
    return fresh(shape, x.dtype) if shape is not None else None


# Copies.


def clone(c: Constants, x: Meta, *, memory_format: object = None) -> Meta | None:
    if memory_format == c.contiguous_format:
        return fresh(x.shape, x.dtype)
    if memory_format is None or memory_format == c.preserve_format:
        return Meta(x.shape, preserved_stride(x.shape, x.stride), 0, x.dtype)
    return None


def to_copy(
    c: Constants,
    x: Meta,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: object = None,
) -> Meta | None:
    if layout is not None and layout != c.strided:
        return None
    copy = clone(c, x, memory_format=memory_format)
    return copy if copy is None or dtype is None else copy._replace(dtype=dtype)


def triangle(c: Constants, x: Meta, diagonal: int = 0) -> Meta | None:
    return fresh(x.shape, x.dtype) if len(x.shape) >= 2 else None


_FLOAT_UNARY = "cos erf exp expm1 log log1p log2 reciprocal rsqrt sigmoid silu sin sqrt tanh"
_SIGNED_UNARY = "abs neg relu sign"
_COMPARISONS = "eq ne lt le gt ge"
_BITWISE = "bitwise_and bitwise_or bitwise_xor"

RULES: dict[str, Any] = {
    **{f"aten.{name}.default": float_unary for name in _FLOAT_UNARY.split()},
    **{f"aten.{name}.default": signed_unary for name in _SIGNED_UNARY.split()},
    **{f"aten.{name}.{kind}": compare for name in _COMPARISONS.split() for kind in ("Tensor", "Scalar")},
    **{f"aten.{name}.{kind}": bitwise for name in _BITWISE.split() for kind in ("Tensor", "Scalar")},
    **{f"aten.logical_{name}.default": compare for name in ("and", "or", "xor")},
    **{f"aten.{name}.Tensor": add_tensor for name in ("add", "sub")},
    **{f"aten.{name}.Scalar": add for name in ("add", "sub", "rsub")},
    **{f"aten.{name}.default": multiply for name in ("maximum", "minimum")},
    **{f"aten.mul.{kind}": multiply for kind in ("Tensor", "Scalar")},
    **{f"aten.div.{kind}": divide for kind in ("Tensor", "Scalar")},
    **{f"aten.div.{kind}": divide_mode for kind in ("Tensor_mode", "Scalar_mode")},
    **{f"aten.masked_fill.{kind}": masked_fill for kind in ("Tensor", "Scalar")},
    **{f"aten.{name}.default": triangle for name in ("tril", "triu")},
    "aten._to_copy.default": to_copy,
    "aten.bitwise_not.default": bitwise_unary,
    "aten.clamp.default": clamp,
    "aten.clone.default": clone,
    "aten.gelu.default": gelu,
    "aten.logical_not.default": logical_unary,
    "aten.pow.Tensor_Scalar": power,
    "aten.where.self": where,
}
