"""What a row costs: floating-point operations and the bytes that it reads and writes. Pure, without torch.

A rule by op name (cost_contract.py, cost_move.py, cost_reduce.py), else the default: each input is read once, each
fresh output is written, one operation an element. What only looks at memory in another way costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from remora.ir.annotated import Facts, Graph, Row
from remora.ir.node import Arg, Const, Hole, Items, Ref, Slot, Symbol
from remora.ops import cost_contract, cost_move, cost_reduce
from remora.ops.cost_call import FREE, Call, Kind, Value, Work, default

Rule = Callable[[Call], Work]

RULES: dict[str, Rule] = {**cost_move.RULES, **cost_reduce.RULES, **cost_contract.RULES}
"""Rules by the op's base name: `add` for `aten.add.Tensor` and `aten.add_.Tensor` alike."""

__all__ = ["FREE", "Kind", "Work", "graph_work", "work"]


def work(
    row: Row,
    inputs: Sequence[Facts | None],
    holes: Sequence[int | float] = (),
    covered: Sequence[int] | None = None,
) -> Work:
    """The work of one row.

    Args:
        inputs: what the row's tensors look like, in the order of `Row.tensors()`; None: only the data tells.
        holes: the row's own numbers, in order.
        covered: bytes of memory that each input covers, where that is less than its shape says (`expand`).
    """
    if row.outs and all(at is not None for at in row.shares) and not _in_place(row.node.op):
        return FREE
    base = base_name(row.node.op)
    call = _bind(row, base, inputs, holes, covered)
    rule = RULES.get(base, default)
    return rule(call)


def graph_work(graph: Graph) -> tuple[Work, ...]:
    """The work of every row; a view reads no more memory than what it is a view of."""
    covered: dict[tuple[int, int], int] = {}
    slots = [slot.facts.nbytes for slot in graph.slots]
    found: list[Work] = []
    start = 0
    for number, row in enumerate(graph.rows):
        tensors = row.tensors()
        facts = [graph.facts(arg) for arg in tensors]
        reads = [slots[arg.index] if isinstance(arg, Slot) else covered[arg.row, arg.out] for arg in tensors]
        end = start + sum(isinstance(arg, Hole) for arg in row.node.inputs())
        done = work(row, facts, graph.holes[start:end], reads)
        found.append(done)
        start = end
        for out, (made, shared) in enumerate(zip(row.outs, row.shares, strict=True)):
            nbytes = done.bytes_written if made is None else made.nbytes
            covered[number, out] = nbytes if shared is None else min(nbytes, reads[shared])
    return tuple(found)


def _in_place(op: str) -> bool:
    return op.split(".")[1].endswith("_")


def base_name(op: str) -> str:
    """`add` of `aten.add_.Tensor`; a name between double underscores stays as it is."""
    base = op.split(".")[1]
    return base[:-1] if base.endswith("_") and not base.endswith("__") else base


def _bind(
    row: Row,
    base: str,
    inputs: Sequence[Facts | None],
    holes: Sequence[int | float],
    covered: Sequence[int] | None,
) -> Call:
    tensors, numbers = iter(inputs), iter(holes)
    args = tuple([_value(arg, tensors, numbers) for arg in row.node.args])
    kwargs = {name: _value(arg, tensors, numbers) for name, arg in row.node.kwargs}
    if covered is None:
        covered = [0 if facts is None else facts.nbytes for facts in inputs]
    refs = row.tensors()
    reads: dict[Ref | Slot, int] = dict(zip(refs, covered, strict=True))  # read twice is read once
    written = sum(covered[at] for at in row.writes)
    fresh = [facts for facts, at in zip(row.outs, row.shares, strict=True) if at is None]
    return Call(
        base,
        args,
        kwargs,
        tuple(inputs),
        sum(reads.values()),
        tuple(covered),
        row.outs,
        tuple(fresh),
        written,
    )


def _value(arg: Arg, tensors: Iterator[Facts | None], numbers: Iterator[int | float]) -> Value:
    match arg:
        case Ref() | Slot():
            return next(tensors)
        case Hole():
            return next(numbers, None)
        case Const(value):
            return value
        case Symbol(_, name):
            return name
        case Items(items):
            return tuple([_value(item, tensors, numbers) for item in items])
