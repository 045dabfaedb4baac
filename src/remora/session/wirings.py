"""Segments that run as they did before: recognised by their wiring, so that nothing is decided about them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from remora.capture.recorder import Segment
from remora.ir.annotated import Residency
from remora.ir.node import Slot
from remora.session.holdings import Holdings, Key, Place, alone
from remora.session.plans import Plan, Use

MAX_WIRINGS = 1024  # the oldest goes first, and is learned again
_Pick = Callable[[Sequence[Key]], Any]


@dataclass(frozen=True, slots=True)
class Wiring:
    """A plan that stays whole on one executor, with the weights that it read there.

    others: positions of the slots that are no weights. storages: of all slots (holdings.Storage.number); those of
    `others` differ from run to run. shared: which slots lie in the same memory, gates, generators: as in the key of a
    plan. nbytes: of the weights. epoch: as in Holdings. writes: positions of `others` whose memory is written. views:
    whether values that live on lie in the memory of slots.
    """

    plan: Plan
    executor: int
    keep: tuple[int, ...]
    others: tuple[int, ...]
    storages: tuple[int, ...]
    shared: tuple[int, ...] | None
    nbytes: int
    gates: tuple[bool, ...]
    generators: int | None
    epoch: int
    writes: tuple[int, ...]
    views: bool


class Wirings:
    """What was learned of one session, by template and weights."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._picks: dict[int, tuple[_Pick, tuple[int, ...]]] = {}  # of each template, its weights' positions
        self._known: dict[tuple[int, Any], Wiring] = {}

    def find(
        self, segment: Segment, keys: list[Key], generators: int | None, gates: Sequence[int]
    ) -> tuple[Wiring, Use] | None:
        """The wiring of a segment, if everything that its plan rests on is as it was; with this run of the plan.

        Every slot is where the plan has it: weights because nothing has moved since, the others were looked at.
        """
        index = segment.captured.index
        pick = self._picks.get(index)
        if pick is None:
            return None
        known = self._known.get((index, pick[0](keys)))
        if (
            known is None
            or known.epoch != self._holdings.epoch
            or known.keep != segment.keep
            or known.generators != generators
            or (gates and known.gates != tuple([segment.holes[hole] != 0 for hole in gates]))
        ):
            return None
        places, here, executor = self._holdings.places, alone(known.executor), known.executor
        nbytes, storages = known.nbytes, list(known.storages)
        for at in known.others:
            place = places[keys[at]]
            storage = place.storage
            if place.homes is not here or storage.owner != executor:
                return None
            nbytes += place.nbytes
            storages[at] = storage.number
        if nbytes.bit_length() != known.plan.bucket or not _is_shared(storages, known):
            return None
        return known, Use(known.plan, tuple(storages))

    def learn(
        self,
        segment: Segment,
        use: Use,
        keys: list[Key],
        places: Sequence[Place],
        generators: int | None,
        gates: Sequence[int],
    ) -> None:
        """A segment ran straight, with all that it reads on its executor alone."""
        plan, index = use.plan, segment.captured.index
        executor = plan.parts[0].executor
        here = alone(executor)
        if any(place.homes is not here or place.storage.owner != executor for place in places):
            return
        pick = self._picks.get(index)
        if pick is None:
            weights = tuple(
                at for at in range(len(keys)) if plan.residency(Slot(at)) == Residency.WEIGHT.value
            )
            pick = self._picks[index] = _pick(weights), weights
        weights = pick[1]
        others = tuple(sorted(set(range(len(keys))) - set(weights)))
        numbers = [place.storage.number for place in places]
        if len(self._known) >= MAX_WIRINGS:
            del self._known[next(iter(self._known))]
        self._known[index, pick[0](keys)] = Wiring(
            plan,
            executor,
            segment.keep,
            others,
            use.storages,
            shared_memories(numbers),
            sum(places[at].nbytes for at in weights),
            tuple([segment.holes[hole] != 0 for hole in gates]),
            generators,
            self._holdings.epoch,
            tuple(at for at in plan.writes if at in set(others)),
            any(shared is not None and shared >= 0 for _, shared in plan.made),
        )

    def forget(self) -> None:
        """Plans have gone."""
        self._known.clear()


def shared_memories(storages: Sequence[int]) -> tuple[int, ...] | None:
    """For each slot, the first one in the same memory; None if each has its own."""
    return tuple(map(storages.index, storages)) if len(set(storages)) < len(storages) else None


def _is_shared(storages: Sequence[int], known: Wiring) -> bool:
    """Whether the slots share memory as they did."""
    if known.shared is None:
        return len(set(storages)) == len(storages)
    return shared_memories(storages) == known.shared


def _pick(positions: tuple[int, ...]) -> _Pick:
    if not positions:
        return _nothing
    return itemgetter(*positions)


def _nothing(keys: Sequence[Key]) -> Any:
    return ()
