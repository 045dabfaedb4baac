"""How much memory rows take on the executor that runs them: does a graph fit?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from remora.ir.annotated import Graph
from remora.ir.node import Ref, Slot

Storage = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on one executor while rows run. Each memory counts once, as large as the largest tensor seen of it.

    read_nbytes: of what was there before. made_nbytes: at most, at one time, of what the rows make. kept_nbytes: of
    that, what is still there afterwards.
    """

    read_nbytes: int
    made_nbytes: int
    kept_nbytes: int

    @property
    def peak_nbytes(self) -> int:
        return self.read_nbytes + self.made_nbytes


def footprint(
    graph: Graph, rows: Sequence[int] | None = None, exports: Collection[tuple[int, int]] = ()
) -> Footprint:
    """What rows take when they run in order, each value dropped after its last reader among them.

    Args:
        rows: those of one executor, ascending; all of the graph if none are given.
        exports: outputs (row, out) that are read elsewhere, and so are kept as those in `graph.keep` are.
    """
    chosen = range(len(graph.rows)) if rows is None else rows
    here = set(chosen)
    read: dict[Storage, int] = {}
    last: dict[Storage, int] = {}
    for number in chosen:
        for arg in graph.rows[number].tensors():
            storage, facts = graph.storage(arg), graph.facts(arg)
            last[storage] = number
            if _made_elsewhere(storage, here):
                read[storage] = max(read.get(storage, 0), facts.nbytes if facts is not None else 0)
    kept = {graph.storage(Ref(row, out)) for row, out in (*graph.keep, *graph.wants, *exports) if row in here}
    alive: dict[Storage, int] = {}
    now = most = 0
    for number in chosen:
        row = graph.rows[number]
        for out, facts in enumerate(row.outs):
            storage = graph.storage(Ref(number, out))
            if facts is None or _made_elsewhere(storage, here):
                continue
            grown = max(0, facts.nbytes - alive.get(storage, 0))
            alive[storage] = alive.get(storage, 0) + grown
            now += grown
        most = max(most, now)
        for storage in [storage for storage in alive if last.get(storage, number) <= number]:
            if storage not in kept:
                now -= alive.pop(storage)
    return Footprint(sum(read.values()), most, sum(alive[storage] for storage in kept if storage in alive))


def _made_elsewhere(storage: Storage, here: set[int]) -> bool:
    kind, row, _ = storage
    return kind == "slot" or row not in here


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on one executor, with all that it holds already. lasting_nbytes: after some rows have run. peak_nbytes: at
    most while they run. missing_nbytes: of both, what has to get there first."""

    lasting_nbytes: int
    peak_nbytes: int
    missing_nbytes: int = 0


def need(graph: Graph, rows: Sequence[int], there: Sequence[bool], held_nbytes: int) -> Need:
    """What an executor needs that runs some rows.

    Args:
        there: for each slot, whether the executor has it. held_nbytes: what it has.
    """
    missing: dict[Storage, int] = {}
    for row in rows:
        for arg in graph.rows[row].tensors():
            if isinstance(arg, Slot) and not there[arg.index]:
                storage = graph.storage(arg)
                missing[storage] = max(missing.get(storage, 0), graph.slots[arg.index].facts.nbytes)
    before = held_nbytes + sum(missing.values())
    found = footprint(graph, rows)
    return Need(before + found.kept_nbytes, before + found.made_nbytes, before - held_nbytes)


def shortfall(needs: Sequence[Need], limits_nbytes: Sequence[int]) -> str:
    """The arithmetic of what does not last, executor by executor; '' if all of it fits."""
    lines = []
    for executor, (found, limit) in enumerate(zip(needs, limits_nbytes, strict=True)):
        needed = found.lasting_nbytes
        if needed > limit:
            lines.append(
                f"executor {executor} needs {needed:,} bytes and grants {limit:,}: {needed - limit:,} missing"
            )
    return "; ".join(lines)
