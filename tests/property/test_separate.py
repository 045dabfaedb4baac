"""How a batch goes through ops, against PyTorch: made on slices and concatenated, outputs are those of the whole."""

from __future__ import annotations

import pytest
import torch

from remora.ir.annotated import Facts, Row
from remora.ir.node import Const, Hole, Items, Node, Slot
from remora.ops.dtypes import dtype_name
from remora.ops.separate import RULES, separate

aten = torch.ops.aten
B = 4


def f(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def i(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape)


X = (B, 3, 5)
UNARY = [
    "abs",
    "acos",
    "acosh",
    "alias",
    "angle",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "ceil",
    "celu",
    "clone",
    "cos",
    "cosh",
    "detach",
    "elu",
    "erf",
    "erfc",
    "exp",
    "exp2",
    "expm1",
    "floor",
    "frac",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "isfinite",
    "isinf",
    "isnan",
    "log",
    "log10",
    "log1p",
    "log2",
    "log_sigmoid",
    "logical_not",
    "logit",
    "mish",
    "neg",
    "ones_like",
    "positive",
    "reciprocal",
    "relu",
    "relu6",
    "round",
    "rsqrt",
    "selu",
    "sgn",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "sinh",
    "softplus",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "trunc",
    "zeros_like",
]
BINARY = [
    "add",
    "atan2",
    "copysign",
    "div",
    "eq",
    "divide",
    "floor_divide",
    "fmod",
    "ge",
    "gt",
    "heaviside",
    "hypot",
    "le",
    "logaddexp",
    "logical_and",
    "logical_or",
    "logical_xor",
    "lt",
    "maximum",
    "minimum",
    "mul",
    "ne",
    "remainder",
    "sub",
    "true_divide",
    "xlogy",
]

# (op, arguments, dimension of each tensor among them)
CASES: list[tuple[object, tuple[object, ...], tuple[int | None, ...]]] = [
    *((getattr(aten, name), (f(*X),), (0,)) for name in UNARY),
    *((getattr(aten, name), (f(*X), f(*X)), (0, 0)) for name in BINARY),
    (aten.mul, (f(*X), f(1, 3, 1)), (0, None)),
    (aten.add, (f(3, 5), f(*X)), (None, 0)),
    (aten.add, (f(*X), f(B, 1, 5)), (0, None)),
    (aten.bitwise_and, (i(9, *X), i(9, *X)), (0, 0)),
    (aten.bitwise_or, (i(9, *X), i(9, *X)), (0, 0)),
    (aten.bitwise_xor, (i(9, *X), i(9, 5)), (0, None)),
    (aten.bitwise_not, (i(9, *X),), (0,)),
    (aten.pow, (f(*X), 2), (0,)),
    (aten.rsub, (f(*X), 1.5), (0,)),
    (aten.clamp, (f(*X), -0.5, 0.5), (0,)),
    (aten.clamp_min, (f(*X), 0.1), (0,)),
    (aten.clamp_max, (f(*X), 0.1), (0,)),
    (aten.leaky_relu, (f(*X), 0.1), (0,)),
    (aten.hardshrink, (f(*X), 0.5), (0,)),
    (aten.threshold, (f(*X), 0.1, 0.0), (0,)),
    (aten.full_like, (f(*X), 2.0), (0,)),
    (aten.fill, (f(*X), 2.0), (0,)),
    (aten.lerp, (f(*X), f(*X), 0.3), (0, 0)),
    (aten.addcmul, (f(*X), f(*X), f(5)), (0, 0, None)),
    (aten.addcdiv, (f(*X), f(*X), f(3, 5)), (0, 0, None)),
    (aten.where, (f(*X) > 0, f(*X), f(5)), (0, 0, None)),
    (aten.masked_fill, (f(*X), f(*X) > 0, 1.0), (0, 0)),
    (aten.contiguous, (f(*X),), (0,)),
    # products
    (aten.linear, (f(*X), f(7, 5), f(7)), (0, None, None)),
    (aten.linear, (f(2, B, 5), f(7, 5)), (1, None)),
    (aten.addmm, (f(7), f(B * 3, 5), f(5, 7)), (None, 0, None)),
    (aten.addmm, (f(B * 3, 7), f(B * 3, 5), f(5, 7)), (None, 0, None)),
    (aten.mm, (f(B * 2, 5), f(5, 3)), (0, None)),
    (aten.mm, (f(3, 5), f(5, B)), (None, 1)),
    (aten.bmm, (f(B * 2, 3, 5), f(B * 2, 5, 4)), (0, 0)),
    (aten.baddbmm, (f(1, 3, 4), f(B, 3, 5), f(B, 5, 4)), (None, 0, 0)),
    (aten.matmul, (f(B, 2, 3, 5), f(B, 2, 5, 4)), (0, 0)),
    (aten.matmul, (f(B, 3, 5), f(5, 4)), (0, None)),
    (aten.matmul, (f(B, 2, 3, 5), f(2, 5, 4)), (0, None)),
    (aten.scaled_dot_product_attention, (f(B, 2, 6, 8), f(B, 2, 6, 8), f(B, 2, 6, 8)), (0, 0, 0)),
    (aten.scaled_dot_product_attention, (f(B, 2, 6, 8), f(B, 2, 6, 8), f(B, 2, 6, 8), f(B, 1, 6, 6)), (0, 0, 0, None)),
    (aten.scaled_dot_product_attention, (f(B, 2, 6, 8), f(B, 2, 6, 8), f(B, 2, 6, 8), f(1, 1, 6, 6)), (0, 0, 0, None)),
    (aten.embedding, (f(9, 5), i(9, B, 3)), (None, 0)),
    (aten.conv1d, (f(B, 3, 8), f(4, 3, 3)), (0, None)),
    (aten.conv2d, (f(B, 3, 8, 8), f(4, 3, 3, 3), f(4)), (0, None, None)),
    (aten.conv3d, (f(B, 2, 4, 4, 4), f(3, 2, 2, 2, 2)), (0, None)),
    (aten.convolution, (f(B, 3, 8, 8), f(4, 3, 3, 3), None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1), (0, None)),
    (aten.max_pool1d, (f(B, 3, 8), (2,)), (0,)),
    (aten.max_pool2d, (f(B, 3, 8, 8), (2, 2)), (0,)),
    (aten.max_pool3d, (f(B, 3, 4, 4, 4), (2, 2, 2)), (0,)),
    (aten.max_pool2d_with_indices, (f(B, 3, 8, 8), (2, 2)), (0,)),
    (aten.avg_pool1d, (f(B, 3, 8), (2,)), (0,)),
    (aten.avg_pool2d, (f(B, 3, 8, 8), (2, 2)), (0,)),
    (aten.avg_pool3d, (f(B, 3, 4, 4, 4), (2, 2, 2)), (0,)),
    (aten.adaptive_avg_pool1d, (f(B, 3, 8), (2,)), (0,)),
    (aten.adaptive_avg_pool2d, (f(B, 3, 8, 8), (1, 1)), (0,)),
    (aten._adaptive_avg_pool2d, (f(B, 3, 8, 8), (1, 1)), (0,)),
    (aten.adaptive_avg_pool3d, (f(B, 3, 4, 4, 4), (1, 1, 1)), (0,)),
    (aten.upsample_nearest2d, (f(B, 3, 4, 4), (8, 8)), (0,)),
    (aten.upsample_bilinear2d, (f(B, 3, 4, 4), (8, 8), False), (0,)),
    (aten.upsample_bicubic2d, (f(B, 3, 4, 4), (8, 8), False), (0,)),
    (aten.batch_norm, (f(B, 3, 4), f(3), f(3), f(3), f(3).abs(), False, 0.1, 1e-5, False), (0, None, None, None, None)),
    (aten.native_batch_norm, (f(B, 3, 4), f(3), f(3), f(3), f(3).abs(), False, 0.1, 1e-5), (0, None, None, None, None)),
    (aten.layer_norm, (f(*X), (5,), f(5), f(5)), (0, None, None)),
    (aten.native_layer_norm, (f(*X), (5,), f(5), f(5), 1e-5), (0, None, None)),
    (aten.rms_norm, (f(*X), (5,), f(5)), (0, None)),
    (aten.group_norm, (f(B, 4, 5), 2, f(4), f(4)), (0, None, None)),
    *((getattr(aten, name), (f(*X), -1), (0,)) for name in ("softmax", "log_softmax")),
    *((getattr(aten, name), (f(*X), -1, False), (0,)) for name in ("_softmax", "_log_softmax")),
    *((getattr(aten, name), (f(*X), (1,)), (0,)) for name in ("sum", "mean", "amax", "amin", "logsumexp")),
    *((getattr(aten, name), (f(*X), 1), (0,)) for name in ("argmax", "argmin", "any", "all", "prod", "max", "min")),
    *((getattr(aten, name), (f(3, B, 5), (0,), True), (1,)) for name in ("sum", "mean")),
    (aten.sum, (f(3, B, 5), (0,)), (1,)),
    (aten.var, (f(*X), (2,)), (0,)),
    (aten.std, (f(*X), (2,)), (0,)),
    *((getattr(aten, name), (f(*X), 1), (0,)) for name in ("cumsum", "cumprod", "sort", "argsort")),
    (aten.topk, (f(*X), 2), (0,)),
    (aten.gather, (f(*X), 1, i(3, B, 2, 5)), (0, 0)),
    (aten.index_select, (f(*X), 1, i(3, 2)), (0, None)),
    (aten.index_select, (f(9, 5), 0, i(9, B * 2)), (None, 0)),
    (aten.index, (f(9, 5), [i(9, B, 2)]), (None, 0)),
    (aten.index, (f(2, 9, 5), [None, i(9, B, 2)]), (None, 0)),
    # views and moves
    (aten.view, (f(*X), (B * 3, 5)), (0,)),
    (aten.view, (f(B * 3, 5), (B, 3, 5)), (0,)),
    (aten.view, (f(B * 6, 5), (B, -1, 5)), (0,)),
    (aten.view, (f(2, B, 6), (2, B * 2, 3)), (1,)),
    (aten.reshape, (f(*X), (-1, 5)), (0,)),
    (aten._unsafe_view, (f(*X), (B, 15)), (0,)),
    (aten.flatten, (f(*X), 1), (0,)),
    (aten.flatten, (f(*X), 0, 1), (0,)),
    (aten.transpose, (f(*X), 0, 2), (0,)),
    (aten.transpose, (f(*X), 1, 2), (0,)),
    (aten.t, (f(B, 3),), (0,)),
    (aten.permute, (f(*X), (2, 0, 1)), (0,)),
    (aten.unsqueeze, (f(*X), 0), (0,)),
    (aten.unsqueeze, (f(*X), 2), (0,)),
    (aten.squeeze, (f(1, B * 2, 1), 0), (1,)),
    (aten.squeeze, (f(1, B * 2, 1),), (1,)),
    (aten.expand, (f(B, 1, 5), (B, 3, 5)), (0,)),
    (aten.expand, (f(B, 1, 5), (2, B, 3, -1)), (0,)),
    (aten.repeat, (f(*X), (2, 1, 3, 1)), (0,)),
    (aten.slice, (f(*X), 1, 0, 2), (0,)),
    (aten.slice, (f(*X), 0, 0, 2**63 - 1), (0,)),
    (aten.select, (f(*X), 1, 2), (0,)),
    (aten.select, (f(3, B), 0, 2), (1,)),
    (aten.unbind, (f(*X), 1), (0,)),
    (aten.split, (f(*X), 2, 1), (0,)),
    (aten.split_with_sizes, (f(*X), (1, 2), 1), (0,)),
    (aten.unsafe_split, (f(*X), 2, 1), (0,)),
    (aten.unsafe_split_with_sizes, (f(*X), (1, 2), 1), (0,)),
    (aten.chunk, (f(*X), 2, 1), (0,)),
    (aten.unsafe_chunk, (f(*X), 2, 1), (0,)),
    (aten.cat, ([f(*X), f(B, 2, 5)], 1), (0, 0)),
    (aten.cat, ([f(0), f(*X), f(*X)], 1), (None, 0, None)),
    (aten.stack, ([f(*X), f(*X)], 0), (0, None)),
    (aten.roll, (f(*X), (1,), (1,)), (0,)),
    (aten.flip, (f(*X), (1,)), (0,)),
    (aten.constant_pad_nd, (f(*X), (1, 1, 2, 0), 0.0), (0,)),
]  # fmt: skip

# what needs all of the batch: (op, arguments, dimension of each tensor)
WHOLE = [
    (aten.sum, (f(*X), (0,)), (0,)),
    (aten.sum, (f(*X),), (0,)),
    (aten.mean, (f(*X), (0, 1)), (0,)),
    (aten.max, (f(*X),), (0,)),
    (aten.softmax, (f(*X), 0), (0,)),
    (aten.cumsum, (f(*X), 0), (0,)),
    (aten.cat, ([f(*X), f(*X)], 0), (0, 0)),
    (aten.slice, (f(*X), 0, 1, 3), (0,)),
    (aten.select, (f(*X), 0, 1), (0,)),
    (aten.squeeze, (f(B, 3), 0), (0,)),
    (aten.roll, (f(*X), (1,), (0,)), (0,)),
    (aten.view, (f(*X), (3, B * 5)), (0,)),
    (aten.linear, (f(3, B), f(5, B)), (1, None)),
    (aten.linear, (f(B, 3), f(5, 3)), (0, 0)),
    (aten.layer_norm, (f(B, 5), (B, 5)), (0,)),
    (aten.native_batch_norm, (f(B, 3, 4), f(3), f(3), f(3), f(3).abs(), True, 0.1, 1e-5), (0, None, None, None, None)),
    (aten.gather, (f(*X), 0, i(B, B, 2, 5)), (0, 0)),
    (aten.index, (f(*X), [i(B, B)]), (0, 0)),
    (aten.index, (f(*X), [i(B, B)]), (0, None)),
    (aten.nonzero, (f(*X),), (0,)),
    (aten.add, (f(B, B), f(B, B)), (0, 1)),
    (aten.embedding, (f(B, 5), i(B, 3)), (0, None)),
]  # fmt: skip


def asked(op, args, dims):
    """The row of a call, and what the rules say of it."""
    tensors: list[torch.Tensor] = []
    holes: list[int | float] = []

    def encoded(value):
        match value:
            case torch.Tensor():
                tensors.append(value)
                return Slot(len(tensors) - 1)
            case bool() | None:
                return Const(value)
            case int() | float():
                holes.append(value)
                return Hole("int" if isinstance(value, int) else "float")
            case tuple() | list():
                return Items(tuple(map(encoded, value)))
        raise AssertionError(value)

    nodes = tuple(map(encoded, args))
    outs = flat(op(*args))
    name = f"aten.{op.__name__.split('.')[-1]}.default"
    facts = [Facts(dtype_name(one.dtype), tuple(one.shape), one.itemsize) for one in tensors]
    made = tuple(Facts(dtype_name(one.dtype), tuple(one.shape), one.itemsize) for one in outs)
    row = Row(Node(name, nodes), made, (None,) * len(made))
    return tensors, outs, separate(row, facts, dims, holes, B)


def flat(found) -> list[torch.Tensor]:
    return [found] if isinstance(found, torch.Tensor) else [one for item in found for one in flat(item)]


def part(tensor, dim, start, end):
    if dim is None:
        return tensor
    each = tensor.shape[dim] // B
    return tensor.narrow(dim, start * each, (end - start) * each)


def of_slice(args, found, start, end):
    """The arguments of a slice's call."""
    tensors = iter(found.ins)

    def one(value, position=None, place=None):
        match value:
            case torch.Tensor():
                return part(value, next(tensors), start, end)
            case bool():
                return value
            case int() if (position, place) in found.sizes:
                return value // B * (end - start)
            case tuple() | list():
                return type(value)(one(item, position, at) for at, item in enumerate(value))
        return value

    return tuple(one(value, position) for position, value in enumerate(args))


def name_of(case) -> str:
    return str(case[0]).removeprefix("aten.")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_slices_concatenated_are_the_whole(case):
    op, args, dims = case
    _, outs, found = asked(op, args, dims)
    assert found is not None
    assert any(dim is not None for dim in found.outs)
    for sizes in ((2, 2), (1, 3), (1, 1, 2)):
        made, start = [], 0
        for size in sizes:
            made.append(flat(op(*of_slice(args, found, start, start + size))))
            start += size
        for at, (dim, whole) in enumerate(zip(found.outs, outs, strict=True)):
            parts = [one[at] for one in made]
            if dim is None:
                assert all(torch.equal(one, whole) for one in parts)
            else:
                torch.testing.assert_close(torch.cat(parts, dim), whole, rtol=2e-6, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("case", WHOLE, ids=name_of)
def test_what_needs_all_of_the_batch_does_not_separate(case):
    assert asked(*case)[2] is None


def test_every_rule_is_tested():
    tested = {name_of(case) for case in CASES}
    assert set(RULES) - tested == {"_to_copy", "cudnn_batch_norm"}  # as clone, and for GPUs
