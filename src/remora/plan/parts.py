"""A placed graph as programs of single executors and the values that travel between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from remora.ir.annotated import Graph
from remora.ir.graph import Template
from remora.ir.node import EXECUTOR, Arg, Items, Node, Ref, Slot, Symbol
from remora.plan.rewrite import first_holes

Value = Ref | Slot
"""A value of the whole graph: an output of a row, or a slot."""


@dataclass(frozen=True)
class Part:
    """Rows that one executor runs in one go.

    rows: of the graph, ascending. inputs: what each slot of the template is in the graph. holes: which of the graph's
    holes the template's are. exports: outputs (row, out) of the graph that other parts read.
    """

    executor: int
    rows: tuple[int, ...]
    template: Template
    inputs: tuple[Value, ...]
    holes: tuple[int, ...]
    exports: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Transfer:
    """A value that goes from one executor to another, which reads it from part `before` on.

    after: the part that makes it, behind which it sets out; None: it was there before.
    """

    value: Value
    source: int
    target: int
    before: int
    after: int | None = None


@dataclass(frozen=True)
class Parts:
    """Parts in an order in which they may run, and the transfers between them."""

    parts: tuple[Part, ...]
    transfers: tuple[Transfer, ...]


def split(
    graph: Graph,
    homes: tuple[frozenset[int], ...],
    owners: tuple[int, ...],
    cuts: frozenset[int] = frozenset(),
) -> Parts:
    """Splits a placed graph.

    Rows of one executor keep their order. A part ends where its executor has to wait for another one.

    Args:
        homes: the executors that hold each slot's value. owners: the one of them that a copy comes from.
        cuts: rows behind which their executor's part ends too, so that what it has made sets out at once.
    """
    levels = _levels(graph, cuts)
    keys = [(level, executor) for level, executor in zip(levels, graph.executors, strict=True)]
    order = sorted(range(len(graph.rows)), key=lambda row: (keys[row], row))
    groups = [(key, tuple(rows)) for key, rows in groupby(order, key=lambda row: keys[row])]
    part_of = {row: number for number, (_, rows) in enumerate(groups) for row in rows}
    exports: dict[int, set[tuple[int, int]]] = {}
    transfers: dict[tuple[Value, int], Transfer] = {}
    for number, ((_, executor), rows) in enumerate(groups):
        for value in _outside(graph, rows):
            source = _source(graph, value, executor, homes, owners)
            if isinstance(value, Ref):
                exports.setdefault(part_of[value.row], set()).add((value.row, value.out))
            if source != executor and (value, executor) not in transfers:
                after = part_of[value.row] if isinstance(value, Ref) else None
                transfers[value, executor] = Transfer(value, source, executor, number, after)
    first_hole = first_holes(graph)
    parts = tuple(
        _part(graph, executor, rows, first_hole, frozenset(exports.get(number, ())))
        for number, ((_, executor), rows) in enumerate(groups)
    )
    return Parts(parts, tuple(transfers.values()))


def _levels(graph: Graph, cuts: frozenset[int]) -> list[int]:
    """For each row, how many waits for another executor and cuts come before it on its own; never falls on an
    executor, so that its rows keep their order: writes and random numbers depend on it."""
    levels: list[int] = []
    reached: dict[int, int] = {}
    for number, (row, executor) in enumerate(zip(graph.rows, graph.executors, strict=True)):
        level = reached.get(executor, 0)
        for arg in row.tensors():
            if isinstance(arg, Ref):
                level = max(level, levels[arg.row] + (graph.executors[arg.row] != executor))
        levels.append(level)
        reached[executor] = level + (number in cuts)
    return levels


def _outside(graph: Graph, rows: Iterable[int]) -> list[Value]:
    """What rows read that none of them makes, each once, in the order of reading."""
    inside = set(rows)
    found: dict[Value, None] = {}
    for row in sorted(inside):
        for arg in graph.rows[row].tensors():
            if isinstance(arg, Slot) or arg.row not in inside:
                found[arg] = None
    return list(found)


def _source(
    graph: Graph, value: Value, executor: int, homes: tuple[frozenset[int], ...], owners: tuple[int, ...]
) -> int:
    if isinstance(value, Ref):
        return graph.executors[value.row]
    return executor if executor in homes[value.index] else owners[value.index]


def _part(
    graph: Graph,
    executor: int,
    rows: tuple[int, ...],
    first_hole: list[int],
    exports: frozenset[tuple[int, int]],
) -> Part:
    inputs = _outside(graph, rows)
    names: dict[Value, Slot] = {value: Slot(at) for at, value in enumerate(inputs)}
    local = {row: at for at, row in enumerate(rows)}

    def renamed(arg: Arg) -> Arg:
        match arg:
            case Ref(row, out) if row in local:
                return Ref(local[row], out)
            case Ref() | Slot():
                return names[arg]
            case Items(items):
                return Items(tuple(map(renamed, items)))
            case Symbol("device"):
                return EXECUTOR
        return arg

    nodes = []
    for row in rows:
        node = graph.rows[row].node
        kwargs = tuple((name, renamed(arg)) for name, arg in node.kwargs)
        nodes.append(Node(node.op, tuple(map(renamed, node.args)), kwargs, node.layouts))
    holes = tuple(hole for row in rows for hole in range(first_hole[row], first_hole[row + 1]))
    return Part(executor, rows, Template(tuple(nodes)), tuple(inputs), holes, exports)


def placed(graph: Graph, executors: tuple[int, ...]) -> Graph:
    """The graph with the executor of each row."""
    return replace(graph, executors=executors)
