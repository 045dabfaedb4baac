"""How a batch goes through ops that only look at, or copy, what is there."""

from __future__ import annotations

from math import prod

from remora.ops.cost_call import every
from remora.ops.separate_call import Batched, Operand, Rule, Separation, dims_of, wrapped


def view(call: Batched) -> Separation | None:
    """The batch stays the outermost factor of one dimension, behind as many elements as before."""
    x, size = call.first, call.arg(1, "size")
    out = call.outs[0]
    if x.dim is None or out is None or not call.others_are_whole:
        return None
    at = _same_place(x, out.shape, call.count)
    if at is None:
        return None
    named = isinstance(size, tuple) and len(size) == len(out.shape) and size[at] != -1
    return call.along(at, sizes=((1, at),) if named else ())


def flatten(call: Batched) -> Separation | None:
    x, out = call.first, call.outs[0]
    if x.dim is None or out is None or call.overload not in ("default", "using_ints"):
        return None
    at = _same_place(x, out.shape, call.count)
    return call.along(at) if at is not None else None


def _same_place(x: Operand, shape: tuple[int, ...], count: int) -> int | None:
    """The dimension of which the batch is the outermost factor, of a tensor with the same elements in that order."""
    assert x.dim is not None
    before = prod(x.shape[: x.dim])
    for at, size in enumerate(shape):
        if prod(shape[:at]) == before and size > 1 and size % count == 0:
            return at
    return None


def transpose(call: Batched) -> Separation | None:
    x = call.first
    a, b = wrapped(call.arg(1, "dim0"), x.ndim), wrapped(call.arg(2, "dim1"), x.ndim)
    if x.dim is None or a is None or b is None:
        return None
    return call.along({a: b, b: a}.get(x.dim, x.dim))


def matrix_transpose(call: Batched) -> Separation | None:
    x = call.first
    return None if x.dim is None or x.ndim > 2 else call.along(x.ndim - 1 - x.dim)


def permute(call: Batched) -> Separation | None:
    x = call.first
    order = dims_of(call.arg(1, "dims"), x.ndim)
    return None if x.dim is None or order is None else call.along(order.index(x.dim))


def unsqueeze(call: Batched) -> Separation | None:
    x = call.first
    at = wrapped(call.arg(1, "dim"), x.ndim + 1)
    return None if x.dim is None or at is None else call.along(x.dim + (at <= x.dim))


def squeeze(call: Batched) -> Separation | None:
    """A batch of one is never cut, so that its dimension never goes."""
    x = call.first
    if x.dim is None:
        return None
    dims = range(x.ndim) if len(call.args) < 2 else dims_of(call.args[1], x.ndim)
    if dims is None or (x.shape[x.dim] == call.count and x.dim in dims):  # a slice of one entry would lose it
        return None
    gone = [dim for dim in dims if x.shape[dim] == 1]
    return call.along(x.dim - sum(dim < x.dim for dim in gone))


def expand(call: Batched) -> Separation | None:
    x, size = call.first, call.arg(1, "size")
    if x.dim is None or not isinstance(size, tuple):
        return None
    at = len(size) - x.ndim + x.dim
    return call.along(at, sizes=((1, at),) if size[at] != -1 else ())


def repeat(call: Batched) -> Separation | None:
    x, times = call.first, call.arg(1, "repeats")
    if x.dim is None or not isinstance(times, tuple):
        return None
    at = len(times) - x.ndim + x.dim
    return call.along(at) if times[at] == 1 else None


def slice_(call: Batched) -> Separation | None:
    """Of another dimension, or all of the batch."""
    x = call.first
    at = wrapped(call.arg(1, "dim", 0), x.ndim)
    if x.dim is None or at is None:
        return None
    if at == x.dim:
        start, end, step = call.arg(2, "start"), call.arg(3, "end"), call.arg(4, "step", 1)
        if start not in (None, 0) or step != 1 or (end is not None and end < 1 << 62):
            return None
    return call.along(x.dim)


def select(call: Batched) -> Separation | None:
    x = call.first
    at = wrapped(call.arg(1, "dim"), x.ndim)
    if x.dim is None or at is None or at == x.dim:
        return None
    return call.along(x.dim - (at < x.dim))


def unbind(call: Batched) -> Separation | None:
    x = call.first
    at = wrapped(call.arg(1, "dim", 0), x.ndim)
    if x.dim is None or at is None or at == x.dim:
        return None
    return call.along(x.dim - (at < x.dim))


def split(call: Batched) -> Separation | None:
    """Along another dimension."""
    x = call.first
    at = wrapped(call.arg(2, "dim", 0), x.ndim)
    return None if x.dim is None or at is None or at == x.dim else call.along(x.dim)


def cat(call: Batched) -> Separation | None:
    """Along another dimension; all are cut. An empty vector among them is nothing."""
    parts = [operand for operand in call.operands if operand.shape != (0,)]
    lying = {operand.dim for operand in parts if operand.dim is not None}
    if len(lying) != 1 or any(operand.dim is not None for operand in call.operands if operand.shape == (0,)):
        return None
    dim = lying.pop()
    at = wrapped(call.arg(1, "dim", 0), parts[0].ndim)
    if at is None or at == dim:
        return None
    ins = tuple(None if operand.shape == (0,) else dim for operand in call.operands)
    return Separation(ins, (dim,))


def stack(call: Batched) -> Separation | None:
    lying = {operand.dim for operand in call.operands if operand.dim is not None}
    at = wrapped(call.arg(1, "dim", 0), call.first.ndim + 1)
    if len(lying) != 1 or at is None:
        return None
    dim = lying.pop()
    return Separation((dim,) * len(call.operands), (dim + (at <= dim),))


def roll(call: Batched) -> Separation | None:
    x = call.first
    dims = dims_of(call.arg(2, "dims"), x.ndim)
    return None if x.dim is None or dims is None or x.dim in dims else call.along(x.dim)


def flip(call: Batched) -> Separation | None:
    x = call.first
    dims = dims_of(call.arg(1, "dims"), x.ndim)
    return None if x.dim is None or dims is None or x.dim in dims else call.along(x.dim)


def pad(call: Batched) -> Separation | None:
    """Dimensions are padded from the last one on."""
    x, widths = call.first, call.arg(1, "pad")
    if x.dim is None or not isinstance(widths, tuple):
        return None
    return call.along(x.dim) if x.dim < x.ndim - len(widths) // 2 else None


RULES: dict[str, Rule] = {
    **every(view, "view reshape _unsafe_view"),
    **every(squeeze, "squeeze"),
    **every(split, "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk"),
    "flatten": flatten,
    "transpose": transpose,
    "t": matrix_transpose,
    "permute": permute,
    "unsqueeze": unsqueeze,
    "expand": expand,
    "repeat": repeat,
    "slice": slice_,
    "select": select,
    "unbind": unbind,
    "cat": cat,
    "stack": stack,
    "roll": roll,
    "flip": flip,
    "constant_pad_nd": pad,
}
