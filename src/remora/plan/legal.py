"""What must stay together, whatever a policy wishes.

Memory has one owner, where all its writers run; a view that outlives the graph lies in memory of its owner; random
numbers are drawn in one place, where the generators are. What shares such a bond is one group and runs on one executor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from remora.ir.annotated import Graph
from remora.ir.node import Ref
from remora.plan.devices import CLIENT
from remora.plan.situation import Situation

Storage = tuple[str, int, int]


@dataclass(frozen=True)
class Legal:
    """A placement that may run.

    moves: storages of slots (as in Outside.storage) that get an owner, or another one, first, with it.
    """

    executors: tuple[int, ...]
    moves: tuple[tuple[int, int], ...]

    def whereabouts(
        self, graph: Graph, situation: Situation
    ) -> tuple[tuple[frozenset[int], ...], tuple[int, ...]]:
        """Homes and owners of the graph's slots once the moves are done; of what is on no executor the owner is
        CLIENT."""
        moved = dict(self.moves)
        homes = tuple(
            frozenset({moved[slot.storage]}) if slot.storage in moved else home
            for slot, home in zip(graph.slots, situation.homes, strict=True)
        )
        owners = [moved.get(slot.storage, at) for slot, at in zip(graph.slots, situation.owners, strict=True)]
        return homes, tuple(CLIENT if at is None else at for at in owners)


def legalised(graph: Graph, wished: tuple[int, ...], situation: Situation, random: Collection[int]) -> Legal:
    """The placement nearest to `wished` that keeps every bond: a group goes where most of its rows are wished.

    Args:
        random: rows that draw random numbers.
    """
    bonds = _Bonds(graph, random)
    votes: dict[int, Counter[int]] = {}
    for row, executor in enumerate(wished):
        votes.setdefault(bonds.group(row), Counter())[executor] += 1
    chosen = {group: min(count, key=lambda e: (-count[e], e)) for group, count in votes.items()}
    owners = {
        slot.storage: at for slot, at in zip(graph.slots, situation.owners, strict=True) if at is not None
    }
    for storage, group in bonds.viewed.items():
        if storage in owners and storage not in bonds.written:
            chosen[group] = owners[storage]
    if random and situation.generators is not None:
        chosen[bonds.group(min(random))] = situation.generators
    moves = tuple(
        (storage, chosen[group])
        for storage, group in {**bonds.viewed, **bonds.written}.items()
        if owners.get(storage) != chosen[group]
    )
    return Legal(tuple(chosen[bonds.group(row)] for row in range(len(graph.rows))), moves)


class _Bonds:
    """Groups of rows. written, viewed: the group that writes a slot's storage, or makes a view of it that lives on."""

    def __init__(self, graph: Graph, random: Collection[int]) -> None:
        self._parents = list(range(len(graph.rows)))
        written = {graph.storage(row.tensors()[at]) for row in graph.rows for at in row.writes}
        viewed = {
            graph.storage(Ref(row, out)) for row, out in graph.keep if graph.rows[row].shares[out] is not None
        }
        first: dict[Storage, int] = {}
        for number, row in enumerate(graph.rows):
            touched = {graph.storage(arg) for arg in row.tensors()} & written
            made = {graph.storage(Ref(number, out)) for out in range(len(row.outs))} & (written | viewed)
            for storage in touched | made:
                self._join(first.setdefault(storage, number), number)
        for number in random:
            self._join(min(random), number)
        self.written = {at: self.group(first[kind, at, out]) for kind, at, out in written if kind == "slot"}
        self.viewed = {at: self.group(first[kind, at, out]) for kind, at, out in viewed if kind == "slot"}

    def group(self, row: int) -> int:
        while self._parents[row] != row:
            self._parents[row] = self._parents[self._parents[row]]
            row = self._parents[row]
        return row

    def _join(self, one: int, other: int) -> None:
        a, b = self.group(one), self.group(other)
        self._parents[max(a, b)] = min(a, b)
