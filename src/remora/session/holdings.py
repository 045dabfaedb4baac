"""Where the values of a session are: pure bookkeeping of names, memory and executors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from remora.ir.annotated import NOTHING, Facts, Meaning, Outside
from remora.ir.node import Node
from remora.session.plans import Use

Key = tuple[int, int]
"""A value's name: segment, and row and output in one number (capture/value.py)."""


@dataclass
class Storage:
    """Memory that some values share. owner: the executor where it is written; None: an upload that is on none yet."""

    number: int
    owner: int | None
    names: set[Key] = field(default_factory=set)
    written: bool = False


@dataclass
class Place:
    """A value. homes: executors that hold it. made_by, made_in: the row that made it, and its template; None and '':
    it was uploaded. use, row: where in the program that was."""

    facts: Facts
    storage: Storage
    homes: set[int]
    made_by: tuple[Node, int] | None
    graph: int  # how many graphs had run when it was made
    meaning: Meaning = NOTHING
    reads: int = 0
    made_in: str = ""
    use: Use | None = None
    row: int = 0


@dataclass(frozen=True, slots=True)
class Living:
    """A value at one moment, as of Place. used: whether a graph has read it."""

    storage: int
    nbytes: int
    homes: frozenset[int]
    residency: str
    use: Use | None
    row: int
    used: bool


class Holdings:
    """All values of a session that live, by name."""

    def __init__(self, n_executors: int) -> None:
        self.places: dict[Key, Place] = {}
        self.held_nbytes = [0] * n_executors
        self.names: dict[int, str] = {}  # module path that a storage belongs to, by its number
        self._storages = itertools.count()

    def uploaded(self, key: Key, facts: Facts) -> Place:
        """A value that the client has, and no executor yet."""
        storage = Storage(next(self._storages), None, {key})
        place = self.places[key] = Place(facts, storage, set(), None, 0)
        return place

    def made(
        self,
        key: Key,
        facts: Facts,
        executor: int,
        shared: Storage | None,
        by: tuple[Node, int],
        graph: int,
        meaning: Meaning,
        made_in: str = "",
    ) -> Place:
        """A value that a row made on an executor. `shared`: the memory that it lies in, if not its own."""
        storage = shared if shared is not None else Storage(next(self._storages), executor)
        storage.names.add(key)
        place = self.places[key] = Place(facts, storage, {executor}, by, graph, meaning, made_in=made_in)
        if shared is None:
            self.held_nbytes[executor] += facts.nbytes
        return place

    def arrived(self, key: Key, executor: int) -> None:
        """An executor got a copy, or the first one."""
        place = self.places[key]
        if executor not in place.homes:
            place.homes.add(executor)
            self.held_nbytes[executor] += place.facts.nbytes
        if place.storage.owner is None:
            place.storage.owner = executor

    def wrote(self, storage: Storage) -> list[tuple[int, Key]]:
        """The owner has written: copies elsewhere are stale. Returns (executor, name) of those to be freed."""
        storage.written = True
        return self._kept_at(storage, storage.owner)

    def moved(self, storage: Storage, to: int) -> list[tuple[int, Key]]:
        """All values of a storage are at `to` now, which owns it. Returns what is to be freed elsewhere."""
        for key in storage.names:
            self.arrived(key, to)
        storage.owner = to
        return self._kept_at(storage, to)

    def _kept_at(self, storage: Storage, owner: int | None) -> list[tuple[int, Key]]:
        stale = []
        for key in sorted(storage.names):
            place = self.places[key]
            for executor in sorted(place.homes - {owner}):
                stale.append((executor, key))
                place.homes.discard(executor)
                self.held_nbytes[executor] -= place.facts.nbytes
        return stale

    def freed(self, keys: Iterable[Key]) -> list[tuple[int, Key]]:
        """Values end. Returns (executor, name) of those that executors hold."""
        found = []
        for key in keys:
            place = self.places.pop(key, None)
            if place is None:
                continue
            storage = place.storage
            storage.names.discard(key)
            for executor in sorted(place.homes):
                found.append((executor, key))
                if not storage.names or executor != storage.owner:
                    self.held_nbytes[executor] -= place.facts.nbytes
        return found

    def called(self, key: Key, module: str) -> None:
        """A value is a parameter or buffer of a module. Of several that share its memory, the first counts."""
        place = self.places.get(key)
        if place is not None:
            self.names.setdefault(place.storage.number, module)

    def living(self) -> tuple[Living, ...]:
        """What lives now, as the program goes on to change it."""
        return tuple(
            Living(
                place.storage.number,
                place.facts.nbytes,
                frozenset(place.homes),
                place.meaning.residency or "",
                place.use,
                place.row,
                place.reads > 0,
            )
            for place in self.places.values()
        )

    def outside(self, key: Key, graph: int) -> Outside:
        """What the planner may know of a value that graph number `graph` reads."""
        place = self.places[key]
        return Outside(
            place.facts,
            place.storage.number,
            place.made_by is None,
            place.made_by,
            graph - place.graph,
            place.storage.written,
            place.reads,
            place.meaning,
            place.made_in,
        )
