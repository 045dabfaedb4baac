"""Segments that run as they did before: recognised by their wiring, so that nothing is decided about them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from remora.capture.recorder import Segment
from remora.capture.value import OUT_BITS
from remora.ir.annotated import Residency
from remora.ir.node import Slot
from remora.session.graphs import size_of
from remora.session.holdings import Holdings, Key, Kind, Place, alone
from remora.session.plans import UNKNOWN, Plan, Use

MAX_WIRINGS = 1024  # the oldest goes first, and is learned again
_Pick = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(slots=True)
class Wiring:
    """A plan that stays whole on one executor, with the weights that it reads there.

    use: a run of it; of memories it names those of weights and whatever the others were. keep, generators, gates: as in
    the key of a plan. others: which slots are no weights. weights: the memories of those
    that are. shared: for each slot the first one in the same memory; None:
    each has its own. nbytes: of the weights. epoch: as in Holdings. kind: of what it makes; None: some of it shares
    memory. frees: what ended before the last run, as in Segment. ends: of that, what was in batches, for each earlier
    segment by its distance, with its kind and which of its values; None until it has been so twice. rest: what was not,
    by distance and code.
    """

    use: Use
    keep: tuple[int, ...]
    generators: int | None
    gates: tuple[bool, ...]
    others: tuple[int, ...]
    weights: frozenset[int]
    shared: tuple[int, ...] | None
    nbytes: int
    epoch: int
    executor: int
    kind: Kind | None
    frees: tuple[int, ...] = ()
    ends: tuple[tuple[int, Kind, tuple[int, ...]], ...] | None = None
    rest: tuple[Key, ...] = ()

    @property
    def plan(self) -> Plan:
        return self.use.plan


class Wirings:
    """What was learned of one session, by template and weights."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._picks: dict[int, tuple[_Pick, _Pick]] = {}  # of a template's slots, the weights and the others
        self._known: dict[tuple[int, Any], Wiring] = {}

    def find(self, segment: Segment, generators: int | None, gates: Sequence[int]) -> Wiring | None:
        """The wiring of a segment, if everything that its plan rests on is as it was.

        Every slot is where the plan has it: weights because nothing has moved since, what straight runs made because
        they made it there, and the rest was looked at. None of these share memory.
        """
        picks = self._picks.get(segment.captured.index)
        if picks is None:
            return None
        names = tuple([(value.segment, value.code) for value in picks[0](segment.slots)])
        known = self._known.get((segment.captured.index, names))
        if (
            known is None
            or known.epoch != self._holdings.epoch
            or known.plan.is_due
            or known.keep != segment.keep
            or known.generators != generators
            or (gates and known.gates != _open(segment, gates))
        ):
            return None
        executor, here = known.executor, alone(known.executor)
        batches, places = self._holdings.batches, self._holdings.places
        others, loose = picks[1](segment.slots), list[int]()
        for value in others:
            batch = batches.get(value.segment)
            if batch is not None and batch.executor == executor:
                continue
            place = places.get((value.segment, value.code))
            if place is None or place.storage.owner != executor:
                return None
            if place.homes is not here and (known.plan.writes or executor not in place.homes):
                return None
            loose.append(place.storage.number)
        nbytes = known.nbytes + sum([size_of(value.meta)[1] for value in others])
        if nbytes.bit_length() != known.plan.bucket:
            return None
        if known.shared is None:
            own = len(set(loose)) == len(loose) and known.weights.isdisjoint(loose)
        else:
            own = self._shared(segment, known) == known.shared
        return known if own else None

    def _shared(self, segment: Segment, known: Wiring) -> tuple[int, ...] | None:
        """Wiring.shared of a segment whose weights are known."""
        storages, places = list(known.use.storages), self._holdings.places
        for at in known.others:
            value = segment.slots[at]
            place = places.get((value.segment, value.code))
            storages[at] = -1 - at if place is None else place.storage.number  # of a batch: its own
        return shared_memories(storages)

    def learn(
        self,
        segment: Segment,
        use: Use,
        places: Sequence[Place],
        generators: int | None,
        gates: Sequence[int],
    ) -> None:
        """A segment ran straight: remembers its wiring, if all that it reads is on its executor alone."""
        plan, index = use.plan, segment.captured.index
        executor = plan.parts[0].executor
        if any(made.copies or made.facts is UNKNOWN for made, _ in plan.made):
            return
        if any(place.storage.owner != executor or executor not in place.homes for place in places):
            return
        if plan.writes and any(len(place.homes) > 1 for place in places):
            return
        weights = [at for at in range(len(places)) if plan.residency(Slot(at)) == Residency.WEIGHT.value]
        others = tuple(at for at in range(len(places)) if at not in set(weights))
        picks = self._picks.setdefault(index, (_pick(weights), _pick(others)))
        if len(self._known) >= MAX_WIRINGS:
            del self._known[next(iter(self._known))]
        names = tuple([(value.segment, value.code) for value in picks[0](segment.slots)])
        simple = all(shared is None for _, shared in plan.made)
        self._known[index, names] = Wiring(
            use,
            segment.keep,
            generators,
            _open(segment, gates),
            others,
            frozenset([use.storages[at] for at in weights]),
            shared_memories(use.storages),
            sum([places[at].nbytes for at in weights]),
            self._holdings.epoch,
            executor,
            Kind(executor, use, tuple([made for made, _ in plan.made])) if simple else None,
        )

    def forget(self) -> None:
        """Plans have gone."""
        self._known.clear()

    # -- what a run that repeats changes

    def ends(self, segment: Segment, known: Wiring) -> list[Key]:
        """Takes note of what ended since the last segment, if these are the same ones again. Returns those that are
        still to be taken note of."""
        frees, number = segment.frees, segment.number
        if frees != known.frees:
            known.frees, known.ends = frees, None
            return ended(segment)
        batches, executor = self._holdings.batches, known.executor
        if known.ends is None or any(number - distance in batches for distance, _ in known.rest):
            known.ends = self._group(segment, known)
        ending = [batches.get(number - distance) for distance, _, _ in known.ends]
        for batch, (_, kind, _) in zip(ending, known.ends, strict=True):
            if batch is None or batch.kind is not kind or batch.executor != executor:
                known.ends = None
                return ended(segment)
        for distance, _, positions in known.ends:
            self._holdings.dropped(number - distance, positions)
        return [(number - distance, code) for distance, code in known.rest]

    def _group(self, segment: Segment, known: Wiring) -> tuple[tuple[int, Kind, tuple[int, ...]], ...]:
        """Wiring.ends; sets Wiring.rest."""
        found: dict[int, list[int]] = {}
        rest: list[Key] = []
        batches, number = self._holdings.batches, segment.number
        for at, code in ended(segment):
            batch = batches.get(at)
            if batch is None or batch.executor != known.executor:
                rest.append((number - at, code))
            else:
                found.setdefault(at, []).append(batch.kind.positions[code])
        known.rest = tuple(rest)
        return tuple((number - at, batches[at].kind, tuple(found[at])) for at in found)


def ended(segment: Segment) -> list[Key]:
    """Names of what ended since the last segment."""
    frees, number = iter(segment.frees), segment.number
    triples = zip(frees, frees, frees, strict=True)
    return [(number - distance, row << OUT_BITS | out) for distance, row, out in triples]


def shared_memories(storages: Sequence[int]) -> tuple[int, ...] | None:
    """For each slot, the first one in the same memory; None if each has its own."""
    return tuple(map(storages.index, storages)) if len(set(storages)) < len(storages) else None


def _open(segment: Segment, gates: Sequence[int]) -> tuple[bool, ...]:
    return tuple([segment.holes[hole] != 0 for hole in gates])


def _pick(positions: Sequence[int]) -> _Pick:
    """Those of a sequence."""
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda values: [values[at] for at in positions]
