"""A graph split over executors computes what the whole graph computes, under any placement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.graph import Template, check
from remora.ir.node import Const, Hole, Items, Node, Ref, Slot
from remora.plan.parts import Parts, placed, split

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


def allowed(graph: Graph, executors: list[int]) -> tuple[int, ...]:
    """What touches memory that is written goes where its first toucher is, with all that this drags along."""
    written = {graph.storage(row.tensors()[at]) for row in graph.rows for at in row.writes}
    group: dict[int, int] = {}

    def find(row: int) -> int:
        while group.get(row, row) != row:
            row = group[row]
        return row

    first: dict[Any, int] = {}
    for number, row in enumerate(graph.rows):
        for arg in row.tensors():
            storage = graph.storage(arg)
            if storage in written or (isinstance(arg, Ref) and graph.storage(Ref(number)) in written):
                other = first.setdefault(storage, number)
                group[find(number)] = find(other)
        made = graph.storage(Ref(number))
        if made in written:
            first.setdefault(made, number)
            group[find(number)] = find(first[made])
    return tuple(executors[find(number)] for number in range(len(graph.rows)))


@dataclass
class Memory:
    """Tensors as histories: a tensor is a list whose last item says all that went into it."""

    cells: dict[Any, list[Any]] = field(default_factory=dict)


def run(nodes: tuple[Node, ...], slots: list[list[Any]], holes: list[int]) -> list[list[Any]]:
    results: list[list[Any]] = []
    numbers = iter(holes)

    def value(arg: Any) -> Any:
        match arg:
            case Ref(row, _):
                return results[row][-1]
            case Slot(index):
                return slots[index][-1]
            case Hole():
                return next(numbers)
            case Items(items):
                return tuple(map(value, items))
        return arg.value

    for node in nodes:
        made = (node.op, *map(value, node.args))
        if "write" in node.op:
            first = node.args[0]
            cell = results[first.row] if isinstance(first, Ref) else slots[first.index]
            cell.append(made)
            results.append(cell)
        else:
            results.append([made])
    return results


def run_parts(graph: Graph, parts: Parts, slots: list[list[Any]], home: tuple[int, ...]) -> dict[int, Any]:
    """Each executor has values of its own; only transfers bring others."""
    n = max([*graph.executors, *home]) + 1
    held: list[dict[Any, list[Any]]] = [{} for _ in range(n)]
    for index, cell in enumerate(slots):
        held[home[index]][Slot(index)] = cell
    for number, part in enumerate(parts.parts):
        for transfer in parts.transfers:
            if transfer.before == number:
                assert transfer.target == part.executor
                held[transfer.target][transfer.value] = list(held[transfer.source][transfer.value])
        check(part.template)
        mine = held[part.executor]
        results = run(
            part.template.nodes,
            [mine[value] for value in part.inputs],
            [graph.holes[hole] for hole in part.holes],  # type: ignore[misc]
        )
        for row, cell in zip(part.rows, results, strict=True):
            mine[Ref(row)] = cell
            if (row, 0) in part.exports:
                assert any(t.value == Ref(row) for t in parts.transfers) or any(
                    Ref(row) in other.inputs for other in parts.parts
                )
    return {row: held[graph.executors[row]][Ref(row)][-1] for row in range(len(graph.rows))}


@given(graphs(), st.data())
def test_parts_compute_what_the_graph_computes(graph: Graph, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    wished = data.draw(st.lists(st.integers(0, n - 1), min_size=len(graph.rows), max_size=len(graph.rows)))
    placed_graph = placed(graph, allowed(graph, wished))
    home = tuple(data.draw(st.integers(0, n - 1)) for _ in graph.slots)
    written = {graph.storage(row.tensors()[at]) for row in graph.rows for at in row.writes}
    moved = list(home)
    for number, row in enumerate(graph.rows):  # memory that is written is where its writers are
        for arg in row.tensors():
            if isinstance(arg, Slot) and graph.storage(arg) in written:
                moved[arg.index] = placed_graph.executors[number]
    home = tuple(moved)
    parts = split(placed_graph, tuple(frozenset({at}) for at in home), home)
    whole = run(Template(tuple(row.node for row in graph.rows)).nodes, [[f"slot {i}"] for i in range(len(home))], list(graph.holes))  # type: ignore[arg-type]
    found = run_parts(placed_graph, parts, [[f"slot {i}"] for i in range(len(home))], home)
    assert found == {row: cell[-1] for row, cell in enumerate(whole)}
    assert sorted(row for part in parts.parts for row in part.rows) == list(range(len(graph.rows)))
    for before, after in zip(parts.parts, parts.parts[1:], strict=False):
        assert before.executor != after.executor or before.rows[-1] < after.rows[0]
