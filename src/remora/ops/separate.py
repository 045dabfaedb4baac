"""How a batch goes through a row: along which dimension of each output it lies when it lies along one of an input.

A rule by op name (separate_compute.py, separate_views.py); an op without one does not separate. Pure, without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from remora.ir.annotated import Facts, Row
from remora.ir.node import Arg, Const, Hole, Items, Ref, Slot, Symbol
from remora.ops import separate_compute, separate_views
from remora.ops.cost import base_name
from remora.ops.separate_call import Batched, Operand, Rule, Separation, Value

RULES: dict[str, Rule] = {**separate_compute.RULES, **separate_views.RULES}
"""Rules by the op's base name: `add` for `aten.add.Tensor` and `aten.add_.Tensor` alike."""

__all__ = ["RULES", "Separation", "separate"]


def separate(
    row: Row,
    inputs: Sequence[Facts | None],
    dims: Sequence[int | None],
    holes: Sequence[int | float],
    count: int,
) -> Separation | None:
    """How a batch of `count` goes through a row; None: it does not separate.

    Args:
        inputs: what the row's tensors look like, in the order of `Row.tensors()`. dims: along which dimension the batch
            lies in each; None: it has not been cut.
        holes: the row's own numbers, in order.
    """
    namespace, _, overload = row.node.op.split(".")
    base = base_name(row.node.op)
    rule = RULES.get(base)
    if namespace != "aten" or rule is None or None in inputs or None in row.outs or not row.outs:
        return None
    operands = tuple(
        Operand(at, facts.shape, dim)
        for at, (facts, dim) in enumerate(zip(inputs, dims, strict=True))
        if facts is not None
    )
    tensors, numbers = iter(operands), iter(holes)
    args = tuple([_value(arg, tensors, numbers) for arg in row.node.args])
    kwargs = {name: _value(arg, tensors, numbers) for name, arg in row.node.kwargs}
    call = Batched(base, overload, args, kwargs, operands, row.outs, count)
    found = rule(call)
    return found if found is not None and _holds(call, found) else None


def _holds(call: Batched, found: Separation) -> bool:
    """Whether inputs lie as the rule wants them, and everything that is cut is whole entries."""
    for operand, dim in zip(call.operands, found.ins, strict=True):
        if operand.dim is not None and dim != operand.dim:
            return False
        if dim is not None and (operand.shape[dim] % call.count or not operand.shape[dim]):
            return False
    for facts, dim in zip(call.outs, found.outs, strict=True):
        assert facts is not None
        if dim is not None and (facts.shape[dim] % call.count or not facts.shape[dim]):
            return False
    return True


def _value(arg: Arg, tensors: Iterator[Operand], numbers: Iterator[int | float]) -> Value:
    match arg:
        case Ref() | Slot():
            return next(tensors)
        case Hole():
            return next(numbers)
        case Const(value):
            return value
        case Symbol(_, name):
            return name
        case Items(items):
            return tuple([_value(item, tensors, numbers) for item in items])
