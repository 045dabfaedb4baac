"""Where the values of a session are: pure bookkeeping of names, memory and executors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from remora.ir.annotated import NOTHING, Facts, Meaning, Outside
from remora.ir.node import Node

if TYPE_CHECKING:
    from remora.session.plans import Use

Key = tuple[int, int]
"""A value's name: segment, and row and output in one number (capture/value.py)."""


class Storage(msgspec.Struct, eq=False, gc=False):
    """Memory that some values share. owner: the executor where it is written; None: an upload that is on none yet.
    nbytes: that count there for it, of the value that was made with it, or of all that came to another owner.
    A Struct, as Place is, for one is made for each value that lives on."""

    number: int
    owner: int | None
    names: set[Key]
    nbytes: int = 0
    written: bool = False


_ALONE = tuple(frozenset({executor}) for executor in range(64))


def alone(executor: int) -> frozenset[int]:
    """The homes of a value that one executor holds."""
    return _ALONE[executor] if executor < len(_ALONE) else frozenset({executor})


class Place(msgspec.Struct, eq=False, gc=False):
    """A value. homes: executors that hold it. made_by, made_in: the row that made it, and its template; None and '':
    it was uploaded. use, row: where in the program that was."""

    facts: Facts
    storage: Storage
    homes: frozenset[int]
    made_by: tuple[Node, int] | None
    graph: int  # how many graphs had run when it was made
    meaning: Meaning = NOTHING
    reads: int = 0
    made_in: str = ""
    nbytes: int = 0  # facts.nbytes, which takes longer to ask for
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


@dataclass(frozen=True, slots=True)
class Made:
    """A value that is about to be made: as a plan knows it before each run.

    part, code: where its row runs, and its row and output there in one number. facts, nbytes: as in the plan's first
    run. copies: executors that get a copy as well. row: of the graph.
    """

    part: int
    code: int
    executor: int
    facts: Facts
    nbytes: int
    by: tuple[Node, int]
    meaning: Meaning
    made_in: str
    copies: tuple[int, ...] = ()
    row: int = 0


class Kind(msgspec.Struct, eq=False, gc=False):
    """What runs of one plan make on one executor, each value in memory of its own."""

    executor: int
    use: Use
    made: tuple[Made, ...]
    positions: dict[int, int] = {}

    def __post_init__(self) -> None:
        self.positions = {made.code: at for at, made in enumerate(self.made)}


class Batch:
    """The values of one such run, while nobody asks for one of them."""

    __slots__ = ("executor", "graph", "kind", "left", "sizes")

    def __init__(self, kind: Kind, graph: int, sizes: list[tuple[Facts, int] | None]) -> None:
        self.kind, self.executor = kind, kind.executor
        self.graph = graph  # as in Place
        self.sizes = sizes  # of each value, with its bytes; None: it has ended
        self.left = len(sizes)


class Holdings:
    """All values of a session that live, by name.

    epoch: how many times a value that an executor had has come to another one, or has gone there.
    """

    def __init__(self, n_executors: int) -> None:
        self.places: dict[Key, Place] = {}
        self.held_nbytes = [0] * n_executors
        self.names: dict[int, str] = {}  # module path that a storage belongs to, by its number
        self.epoch = 0
        self.batches: dict[int, Batch] = {}  # by segment; a value is here or in `places`
        self._storages = itertools.count()

    def find(self, key: Key) -> Place | None:
        """Where a value is; None: nobody knows it."""
        if key not in self.places and key[0] in self.batches:
            self._part(key[0])
        return self.places.get(key)

    def residency(self, key: Key) -> str | None:
        """What a value was recognised as."""
        place, batch = self.places.get(key), self.batches.get(key[0])
        if place is None and batch is not None and key[1] in batch.kind.positions:
            return batch.kind.made[batch.kind.positions[key[1]]].meaning.residency
        return place.meaning.residency if place is not None else None

    def uploaded(self, key: Key, facts: Facts) -> Place:
        """A value that the client has, and no executor yet."""
        storage = Storage(next(self._storages), None, {key})
        place = self.places[key] = Place(facts, storage, frozenset(), None, 0, nbytes=facts.nbytes)
        return place

    def made(
        self,
        key: Key,
        made: Made,
        shared: Storage | None,
        graph: int,
        use: Use | None = None,
        size: tuple[Facts, int] | None = None,
    ) -> Storage:
        """A value that a row made, in graph number `graph`. Returns the memory that it lies in: `shared`, if that is
        not its own. size: if it is not that of `made`."""
        executor = made.executor
        facts, nbytes = size if size is not None else (made.facts, made.nbytes)
        if shared is None:
            shared = Storage(next(self._storages), executor, {key}, nbytes)
            self.held_nbytes[executor] += nbytes
        else:
            shared.names.add(key)
        self.places[key] = Place(
            facts,
            shared,
            alone(executor),
            made.by,
            graph,
            made.meaning,
            0,
            made.made_in,
            nbytes,
            use,
            made.row,
        )
        for other in made.copies:
            self.arrived(key, other)
        return shared

    def made_together(self, segment: int, batch: Batch) -> None:
        """All values that a run made."""
        if batch.left:
            self.batches[segment] = batch
            self.held_nbytes[batch.executor] += sum([size[1] for size in batch.sizes if size is not None])

    def dropped(self, segment: int, positions: Sequence[int]) -> None:
        """Values of a batch end."""
        batch = self.batches[segment]
        sizes, nbytes = batch.sizes, 0
        for at in positions:
            size = sizes[at]
            assert size is not None
            nbytes += size[1]
            sizes[at] = None
        self.held_nbytes[batch.executor] -= nbytes
        batch.left -= len(positions)
        if not batch.left:
            del self.batches[segment]

    def _part(self, segment: int) -> None:
        """The values of a batch are told apart from here on."""
        batch = self.batches.pop(segment)
        kind = batch.kind
        for made, size in zip(kind.made, batch.sizes, strict=True):
            if size is not None:
                self.held_nbytes[kind.executor] -= size[1]  # and again when it is told apart
                self.made((segment, made.code), made, None, batch.graph, kind.use, size)

    def arrived(self, key: Key, executor: int) -> None:
        """An executor got a copy, or the first one."""
        place = self.places[key]
        if executor not in place.homes:
            self.epoch += bool(place.homes)
            place.homes = place.homes | alone(executor) if place.homes else alone(executor)
            self.held_nbytes[executor] += place.nbytes
        if place.storage.owner is None:
            place.storage.owner, place.storage.nbytes = executor, place.nbytes

    def wrote(self, storage: Storage) -> list[tuple[int, Key]]:
        """The owner has written: copies elsewhere are stale. Returns (executor, name) of those to be freed."""
        storage.written = True
        return self._kept_at(storage, storage.owner)

    def moved(self, storage: Storage, to: int) -> list[tuple[int, Key]]:
        """All values of a storage are at `to` now, which owns it. Returns what is to be freed elsewhere."""
        before = storage.owner
        assert before not in (None, to)
        for key in storage.names:
            self.arrived(key, to)
        self.held_nbytes[before] -= storage.nbytes
        storage.owner, storage.nbytes = to, sum(self.places[key].nbytes for key in storage.names)
        return self._kept_at(storage, to, before)

    def _kept_at(
        self, storage: Storage, owner: int | None, before: int | None = None
    ) -> list[tuple[int, Key]]:
        """before: the last owner, whose memory has been counted already."""
        stale = []
        for key in sorted(storage.names):
            place = self.places[key]
            if len(place.homes) > 1:
                for executor in sorted(place.homes - {owner}):
                    stale.append((executor, key))
                    place.homes -= alone(executor)
                    if executor != before:
                        self.held_nbytes[executor] -= place.nbytes
                if len(place.homes) == 1:
                    place.homes = alone(min(place.homes))
                self.epoch += 1
        return stale

    def freed(self, keys: Iterable[Key]) -> list[tuple[int, Key]]:
        """Values end. Returns (executor, name) of those that executors hold."""
        found: list[tuple[int, Key]] = []
        held_nbytes = self.held_nbytes
        for key in keys:
            place = self.places.pop(key, None)
            if place is None:
                batch = self.batches.get(key[0])
                at = batch.kind.positions.get(key[1]) if batch is not None else None
                if batch is not None and at is not None and batch.sizes[at] is not None:
                    found.append((batch.kind.executor, key))
                    self.dropped(key[0], (at,))
                continue
            storage = place.storage
            names = storage.names
            names.discard(key)
            for executor in place.homes if len(place.homes) < 2 else sorted(place.homes):
                found.append((executor, key))
                if executor != storage.owner:
                    held_nbytes[executor] -= place.nbytes
                elif not names:
                    held_nbytes[executor] -= storage.nbytes
        return found

    def called(self, key: Key, module: str) -> None:
        """A value is a parameter or buffer of a module. Of several that share its memory, the first counts."""
        place = self.find(key)
        if place is not None:
            self.names.setdefault(place.storage.number, module)

    def living(self) -> tuple[Living, ...]:
        """What lives now, as the program goes on to change it."""
        for segment in list(self.batches):
            self._part(segment)
        return tuple(
            Living(
                place.storage.number,
                place.nbytes,
                place.homes,
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
