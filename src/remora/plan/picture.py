"""The picture of a placed graph: its layers as columns, executors as lanes, what lives where, what travels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from remora.ir.annotated import Graph, Outside, Residency, Row
from remora.ir.node import Ref, Slot
from remora.plan.blocks import block_names, module_path
from remora.plan.explain import CLIENT, Block, Edge, Picture
from remora.plan.parts import Transfer, Value

FIRST, LAST = "before the layers", "after the layers"


def picture_of(graph: Graph, transfers: Iterable[Transfer], homes: Sequence[frozenset[int]]) -> Picture:
    """Draws one plan; columns have their whole paths, which `joined` shortens.

    Args:
        graph: placed. transfers: between its parts, as `parts.split` gives them: from CLIENT what no executor has yet.
        homes: executors that hold each slot's value before.
    """
    names = _columns(graph.rows)
    order = list(dict.fromkeys(names))
    columns = [order.index(name) for name in names]
    readers = _readers(graph)
    return Picture(
        tuple(order),
        tuple(_blocks(graph, columns, readers, homes)),
        tuple(_edges(graph, columns, readers, transfers)),
    )


def joined(pictures: Sequence[Picture]) -> Picture:
    """One picture of a step that takes several plans, in their order; columns have their shortest clear names."""
    names = [name for picture in pictures for name in picture.columns]
    layers = [name for name in dict.fromkeys(names) if name not in (FIRST, LAST)]
    order = [*([FIRST] if FIRST in names else []), *layers, *([LAST] if LAST in names else [])]
    blocks: dict[tuple[int, int, str], Block] = {}
    edges: dict[tuple[int, int, int, int, str], Edge] = {}
    for picture in pictures:
        at = [order.index(name) for name in picture.columns]
        for block in picture.blocks:
            place = (at[block.column], block.executor, block.residency)
            same = blocks.get(place, Block(*place, 0, 0, block.module))
            blocks[place] = replace(same, nbytes=same.nbytes + block.nbytes, rows=same.rows + block.rows)
        for edge in picture.edges:
            ends = (edge.source, at[edge.source_column], edge.target, at[edge.target_column], edge.residency)
            drawn = edges.get(ends, Edge(*ends, 0, 0))
            edges[ends] = replace(drawn, nbytes=drawn.nbytes + edge.nbytes, count=drawn.count + edge.count)
    short = _shortened(layers)
    columns = tuple(short.get(name, name) for name in order)
    return Picture(columns, tuple(blocks[place] for place in sorted(blocks)), tuple(edges.values()))


def _columns(rows: Sequence[Row]) -> list[str]:
    """The column of each row. Rows of no layer belong to the layer before them, or stand before the first one or
    behind the last one."""
    layered = [number for number, row in enumerate(rows) if row.meaning.layer is not None]
    if not layered:
        return [".".join(module_path(row)[:2]) or "program" for row in rows]
    names: list[str] = []
    for number, name in enumerate(block_names(rows)):
        if name:
            names.append(name)
        elif number < layered[0]:
            names.append(FIRST)
        else:
            names.append(LAST if number > layered[-1] else names[-1])
    return names


def _shortened(names: Iterable[str]) -> dict[str, str]:
    """The last parts of each path: as few, but two, as tell them apart."""
    unique = list(dict.fromkeys(names))
    longest = max((name.count(".") + 1 for name in unique), default=1)
    for parts in range(2, longest):
        short = {name: ".".join(name.split(".")[-parts:]) for name in unique}
        if len(set(short.values())) == len(unique):
            return short
    return {name: name for name in unique}


def _readers(graph: Graph) -> dict[Value, list[int]]:
    found: dict[Value, list[int]] = {}
    for number, row in enumerate(graph.rows):
        for arg in row.tensors():
            found.setdefault(arg, []).append(number)
    return found


def _blocks(
    graph: Graph, columns: Sequence[int], readers: dict[Value, list[int]], homes: Sequence[frozenset[int]]
) -> Iterator[Block]:
    """By column, executor and residency: bytes of what is there or stays there, and rows that run there."""
    held: dict[tuple[int, int, str], list[int]] = {}  # nbytes, rows
    modules: dict[tuple[int, int, str], str] = {}

    def add(row: int, executor: int, item: Row | Outside, nbytes: int, rows: int) -> None:
        key = (columns[row], executor, str(item.meaning.residency or Residency.ACTIVATION))
        cell = held.setdefault(key, [0, 0])
        cell[0], cell[1] = cell[0] + nbytes, cell[1] + rows
        modules.setdefault(key, ".".join(module_path(graph.rows[row])))

    counted: set[tuple[int, int]] = set()
    for index, slot in enumerate(graph.slots):
        for row in readers.get(Slot(index), [])[:1]:
            for executor in sorted(homes[index]):
                if (slot.storage, executor) not in counted:
                    counted.add((slot.storage, executor))
                    add(row, executor, slot, slot.facts.nbytes, 0)
    for number, row_ in enumerate(graph.rows):
        stays = [
            facts.nbytes
            for out, (facts, shared) in enumerate(zip(row_.outs, row_.shares, strict=True))
            if facts is not None and shared is None and (number, out) in graph.keep
        ]
        add(number, graph.executors[number], row_, sum(stays), 1)
    for key, (nbytes, rows) in sorted(held.items()):
        column, executor, residency = key
        yield Block(column, executor, residency, nbytes, rows, modules[key])


def _edges(
    graph: Graph,
    columns: Sequence[int],
    readers: dict[Value, list[int]],
    transfers: Iterable[Transfer],
) -> Iterator[Edge]:
    """What travels, those of the same ends and residency together."""
    moved: dict[tuple[int, int, int, int, str], list[int]] = {}  # nbytes, count

    def add(source: int, source_column: int, target: int, target_column: int, value: Value) -> None:
        item = graph.slots[value.index] if isinstance(value, Slot) else graph.rows[value.row]
        facts = graph.facts(value)
        residency = item.meaning.residency or Residency.ACTIVATION
        if target == CLIENT and residency is Residency.ACTIVATION:
            residency = Residency.OUTPUT
        key = source, source_column, target, target_column, str(residency)
        edge = moved.setdefault(key, [0, 0])
        edge[0], edge[1] = edge[0] + (facts.nbytes if facts is not None else 0), edge[1] + 1

    for transfer in transfers:
        value = transfer.value
        reading = [row for row in readers[value] if graph.executors[row] == transfer.target]
        made = value.row if isinstance(value, Ref) else reading[0]
        add(transfer.source, columns[made], transfer.target, columns[reading[0]], value)
    for row, out in sorted(graph.wants):
        add(graph.executors[row], columns[row], CLIENT, columns[row], Ref(row, out))
    for key, (nbytes, count) in moved.items():
        yield Edge(*key, nbytes, count)
