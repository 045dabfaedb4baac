"""Graphs for tests of the planner."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.node import Const, Hole, Items, Node, Ref, Slot

FACTS = Facts("float32", (2,), 4)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Ops on earlier values, some of which write their first input in place; all tensors have memory of their own."""
    n_slots = draw(st.integers(1, 4))
    rows: list[Row] = []
    for _ in range(draw(st.integers(1, 14))):
        values: list[Any] = [Slot(i) for i in range(n_slots)] + [Ref(i) for i in range(len(rows))]
        args = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
        writes = draw(st.booleans())
        shape = draw(st.sampled_from(["flat", "list", "hole"]))
        node_args: tuple[Any, ...] = tuple(args)
        if shape == "list":
            node_args = (args[0], Items(tuple(args[1:])))
        if shape == "hole":
            node_args = (*args, Hole("int"), Const(True))
        node = Node("aten.write.default" if writes else "aten.op.default", node_args)
        rows.append(Row(node, (FACTS,), (0 if writes else None,), (0,) if writes else ()))
    n_holes = sum(isinstance(arg, Hole) for row in rows for arg in row.node.inputs())
    used = sorted({arg.index for row in rows for arg in row.tensors() if isinstance(arg, Slot)})
    dense = {index: at for at, index in enumerate(used)}
    rows = [_redone(row, dense) for row in rows]
    slots = tuple(Outside(FACTS, storage) for storage in range(len(used)))
    return Graph(tuple(rows), slots, tuple(range(100, 100 + n_holes)))


def _redone(row: Row, dense: dict[int, int]) -> Row:
    def again(arg: Any) -> Any:
        if isinstance(arg, Slot):
            return Slot(dense[arg.index])
        return Items(tuple(map(again, arg.items))) if isinstance(arg, Items) else arg

    node = Node(row.node.op, tuple(map(again, row.node.args)))
    return Row(node, row.outs, row.shares, row.writes)
