"""A graph split over executors computes what the whole graph computes, under any placement."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from plan_graphs import graphs

from remora.ir.annotated import Graph
from remora.ir.graph import check
from remora.ir.node import Hole, Items, Node, Ref, Slot
from remora.plan.parts import Parts, placed, split


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
    slots = [[f"slot {index}"] for index in range(len(home))]
    whole = run(tuple(row.node for row in graph.rows), [list(cell) for cell in slots], list(graph.holes))  # type: ignore[arg-type]
    found = run_parts(placed_graph, parts, slots, home)
    assert found == {row: cell[-1] for row, cell in enumerate(whole)}
    assert sorted(row for part in parts.parts for row in part.rows) == list(range(len(graph.rows)))
    for before, after in zip(parts.parts, parts.parts[1:], strict=False):
        assert before.executor != after.executor or before.rows[-1] < after.rows[0]
