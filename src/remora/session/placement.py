"""Segments over several executors: where each row runs, what travels, and what the values are called afterwards.

A segment becomes a graph, the policy places its rows, and each part of it is an ordinary run on its executor's lane,
with a segment number of its own. The values that live on take the names that they have there. Plans are made once
for a template, a size and a whereabouts of its inputs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from remora.capture.recorder import Segment
from remora.capture.value import OUT_BITS, OUT_MASK, Value
from remora.errors import PlanError
from remora.ir.annotated import Facts, Residency
from remora.ir.node import Ref, Slot
from remora.plan.parts import Part
from remora.plan.planner import Planner
from remora.plan.policies.semantic import STAYS
from remora.plan.situation import Situation
from remora.session.graphs import (
    facts_at,
    facts_of,
    size_of,
)
from remora.session.holdings import Batch, Holdings, Key, Place, Storage
from remora.session.known_plans import KnownPlans
from remora.session.lane import Lane
from remora.session.ledger import UNUSED, Ledger
from remora.session.pinned import Pinned, Upload
from remora.session.plans import UNKNOWN, Plan, Use
from remora.session.wirings import Wiring, Wirings, ended
from remora.wire.messages import Await, Mark, Push

Name = tuple[int, int, int]
SETTLED = 16  # runs of a plan after which they teach nothing new about what it reads


class Placement:
    """The state of placing one session's segments.

    Args:
        number: gives a fresh segment number. renumber: gives the open segment a number above all of these.
        ticket: gives a fresh ticket.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        planner: Planner,
        number: Callable[[], int],
        renumber: Callable[[], None],
        ticket: Callable[[], int],
    ) -> None:
        self.lanes, self.planner, self.policy = lanes, planner, planner.policy
        self.holdings = Holdings(len(lanes))
        self.ledger = Ledger(planner.pool, ticket)
        self.generators: int | None = None  # where random numbers are drawn; None: anywhere, as in Situation
        self.programs = 0
        self.graphs = 0
        self._graphs_before = 0  # this program
        self._number, self._renumber = number, renumber
        self.pinned = Pinned(lanes, self.holdings, self.ledger)
        self.wirings = Wirings(self.holdings)
        self.plans = KnownPlans(planner, self.holdings, self._situation, self.wirings.forget)
        self._unknown: set[Key] = set()  # values whose shape nobody had described when they were made
        self._refused: dict[Key, PlanError] = {}  # values of segments that could not be placed

    # -- values from outside

    def uploaded(self, segment: int, upload: Upload, facts: Facts) -> None:
        """The client has a value; it goes where it is used first, or when too much waits."""
        self.pinned.add(segment, upload, facts)
        try:
            while self.pinned.is_full:
                self._bind_somewhere(self.pinned.oldest)
        except PlanError:
            self.free([(segment, 0)])  # nobody will hear of it
            raise

    def home(self, key: Key) -> int:
        """The executor that has a value; an upload that none has yet goes to one.

        Raises:
            PlanError: the value's segment could not be placed.
        """
        place = self._place(key)
        if place.storage.owner is None:
            self._bind_somewhere(key[0])
        owner = place.storage.owner
        assert owner is not None
        return owner if owner in place.homes else min(place.homes)

    def bring(self, key: Key, executor: int) -> None:
        """Makes sure that an executor has a value."""
        place = self._place(key)
        if place.storage.owner is None:
            self.pinned.bind(key[0], executor)
        elif executor not in place.homes:
            kinds = Counter({place.meaning.residency or "": place.facts.nbytes})
            self._push(self.home(key), executor, [_name(key)], kinds)
            self.holdings.arrived(key, executor)

    def _place(self, key: Key) -> Place:
        refused = self._refused.get(key)
        if refused is not None:
            raise refused
        place = self.holdings.find(key)
        assert place is not None
        return place

    def _bind_somewhere(self, segment: int) -> None:
        """Sends an upload that nothing has used to where it is likely to be used.

        Raises:
            PlanError: there is no room.
        """
        nbytes, situation = self.holdings.places[segment, 0].facts.nbytes, self._situation([])
        home = self.policy.home(nbytes, situation)
        held, limit = situation.held_nbytes[home], situation.limits_nbytes[home]
        if held + nbytes > limit:
            raise PlanError(
                f"the pool is too small: {situation.waiting_nbytes:,} bytes wait on the client for a place, and "
                f"executor {home} ({self.lanes[home].transport.address}), the best one for {nbytes:,} of them, holds "
                f"{held:,} of {limit:,}: {held + nbytes - limit:,} missing; all executors hold "
                f"{sum(situation.held_nbytes):,} of {sum(situation.limits_nbytes):,}; add an executor, or give them "
                "more --memory"
            )
        self.pinned.bind(segment, home)

    def returned(self, value: Value, executor: int, nbytes: int) -> None:
        """The client got a value's bytes."""
        what = self.holdings.residency((value.segment, value.code))
        self.ledger.returns(executor, what if what in STAYS else Residency.OUTPUT, nbytes)

    def program_ends(self) -> None:
        """A sync is asked for. A program of nothing is none."""
        self.programs += self.graphs > self._graphs_before
        self._graphs_before = self.graphs

    # -- segments

    def write(self, segment: Segment, wanted: Sequence[int] = (), ticket: int | None = None) -> int | None:
        """Appends a segment's runs and transfers to the lanes; renames what it made.

        Returns the executor that answers `ticket` with the wanted bytes, if one does: it runs the whole segment.

        Args:
            wanted: of its outputs (`Value.code`), those whose bytes the client asks for next.

        Raises:
            PlanError: it cannot be placed. What it was to make raises that from now on; all else is as before.
        """
        self.graphs += 1
        gates = self.plans.gates(segment)
        known = self.wirings.find(segment, self.generators, gates) if self._may_repeat else None
        if known is None:
            return self._write_anew(segment, gates, wanted, ticket)
        self._write_again(segment, known, wanted, ticket)
        return known.executor if ticket is not None else None

    @property
    def _may_repeat(self) -> bool:
        """Whether nothing waits to be learned of values, and the policy goes by what a wiring knows."""
        return not (
            self._unknown or self._refused or self.ledger.uploading or self.policy.turns or self.plans.anew
        )

    def _write_again(
        self, segment: Segment, known: Wiring, wanted: Sequence[int], ticket: int | None
    ) -> None:
        """As `write`, for what ran so before, straight and settled: what a run changes, and nothing else."""
        plan, executor = known.plan, known.executor
        left = self.wirings.ends(segment, known)
        frees = self._frees_here(segment, left, self._end(left), executor) if left else segment.frees
        marks = self.ledger.runs(known.use, time.perf_counter(), self.lanes[executor].predicts)
        if marks:
            self._mark(plan, 0, marks, 0)
        self._run_straight(segment, plan, frees, wanted, ticket)
        if marks:
            self._mark(plan, 0, marks, 1)
        holdings, graph = self.holdings, self.graphs
        if known.kind is not None:
            sizes: list[tuple[Facts, int] | None] = [size_of(value.meta) for value in segment.kept]
            holdings.made_together(segment.number, Batch(known.kind, graph, sizes))
            return
        places = [self._place((value.segment, value.code)) for value in segment.slots]
        self._rename(segment, known.use, [segment.number], places)
        for slot in plan.writes:
            self._free_at(holdings.wrote(places[slot].storage))

    def _write_anew(
        self,
        segment: Segment,
        gates: tuple[int, ...],
        wanted: Sequence[int],
        ticket: int | None,
    ) -> int | None:
        """As `write`, for what may never have run, or not so."""
        keys = [(value.segment, value.code) for value in segment.slots]
        gone, generators = ended(segment), self.generators
        frees = self._end(gone)
        try:
            places = self._places(segment, keys)
            use = self.plans.use(segment, keys, places, self.graphs, gates, wanted)
            plan = use.plan
        except PlanError as error:
            self._free_at(frees)
            self._refused.update(((value.segment, value.code), error) for value in segment.kept)
            raise
        for slot, executor in plan.moves:
            if places[slot].storage.owner is None:
                self.pinned.bind(keys[slot][0], executor)
            else:
                self._move(places[slot].storage, executor)
        if plan.draws is not None:
            self.generators = plan.draws
        predicted = any(self.lanes[part.executor].predicts for part in plan.parts)
        marks = self.ledger.runs(use, time.perf_counter(), predicted)
        if plan.straight:
            numbers = [segment.number]
            self._await(plan, 0, numbers, self._give(plan, keys)[0])
            self._mark(plan, 0, marks, 0)
            here = self._frees_here(segment, gone, frees, plan.parts[0].executor)
            self._run_straight(segment, plan, here, wanted, ticket)
            self._mark(plan, 0, marks, 1)
        else:
            self._free_at(frees)
            numbers = [self._number() for _ in plan.parts]
            given = self._give(plan, keys)
            for at, part in enumerate(plan.parts):
                self._await(plan, at, numbers, given[at])
                self._mark(plan, at, marks, 0)
                self._run(segment, plan, at, part, numbers, keys)
                self._mark(plan, at, marks, 1)
                self._send_made(segment, plan, at, numbers)
                self._drop(plan, at, numbers)
            self._renumber()
        self._rename(segment, use, numbers, places)
        for slot in plan.writes:
            self._free_at(self.holdings.wrote(places[slot].storage))
        uploading = self.ledger.uploading
        if uploading and not uploading.keys().isdisjoint([number for number, _ in keys]):
            for slot, (number, _) in enumerate(keys):
                if number in uploading and not places[slot].reads:
                    self.ledger.used(number, plan.residency(Slot(slot)))
        if plan.ran.count <= SETTLED:
            for place, slot_of in zip(places, plan.graph.slots, strict=True):
                place.reads += 1
                place.meaning = slot_of.meaning
        elif plan.straight and not plan.moves and not plan.gets_nbytes and not self.policy.turns:
            self.wirings.learn(segment, use, places, generators, gates)
        return plan.parts[0].executor if plan.straight and ticket is not None else None

    def _places(self, segment: Segment, keys: list[Key]) -> list[Place]:
        if self._refused:
            for key in keys:
                self._place(key)
        known = self.holdings.places
        places = [known.get(key) or self._place(key) for key in keys]
        if self._unknown:
            for key, place, value in zip(keys, places, segment.slots, strict=True):
                if key in self._unknown:
                    self._unknown.discard(key)
                    place.facts = facts_of(value.meta)
        return places

    def _mark(self, plan: Plan, at: int, marks: list[tuple[int, int]], end: int) -> None:
        if marks:
            self.lanes[plan.parts[at].executor].say(Mark(marks[at][end], settle=True))

    def _frees_here(
        self, segment: Segment, keys: Sequence[Key], held: list[tuple[int, Key]], executor: int
    ) -> tuple[int, ...]:
        """The frees of a segment without those that are not on its executor, where they are freed if they are held.

        keys: to be looked at; of the others it is known. held: of these, where.
        """
        here = [key for at, key in held if at == executor]
        if len(here) < len(held):
            self._free_at([pair for pair in held if pair[0] != executor])
        if len(here) == len(keys):
            return segment.frees
        number, gone = segment.number, set(keys).difference(here)
        left = [key for key in ended(segment) if key not in gone]
        return tuple([n for at, code in left for n in (number - at, code >> OUT_BITS, code & OUT_MASK)])

    def _run_straight(
        self,
        segment: Segment,
        plan: Plan,
        frees: tuple[int, ...],
        wanted: Sequence[int],
        ticket: int | None,
    ) -> None:
        """The whole segment on one executor, under its own number, with what ended there since the last one."""
        self.lanes[plan.parts[0].executor].run(
            plan.captured[0],
            segment.number,
            segment.names(),
            segment.holes,
            segment.keep,
            frees,
            segment.uploaded,
            None
            if ticket is None
            else tuple([n for code in wanted for n in (code >> OUT_BITS, code & OUT_MASK)]),
            ticket,
        )

    def _run(
        self, segment: Segment, plan: Plan, at: int, part: Part, numbers: list[int], keys: list[Key]
    ) -> None:
        fixed, bound = plan.graph.holes, plan.bound
        self.lanes[part.executor].run(
            plan.captured[at],
            numbers[at],
            [
                _name(keys[value.index]) if isinstance(value, Slot) else _made(plan, numbers, value)
                for value in part.inputs
            ],
            [fixed[hole] if (of := bound[hole]) is None else segment.holes[of] for hole in part.holes],
            plan.keeps[at],
            (),
            uploaded=lambda: [
                at
                for at, value in enumerate(part.inputs)
                if isinstance(value, Slot) and segment.slots[value.index].uploaded
            ],
        )

    def _drop(self, plan: Plan, at: int, numbers: list[int]) -> None:
        """What only travelled, and is not read behind part `at`, ends."""
        for executor, row, out in plan.drops[at]:
            made_in, here = plan.found[row]
            self.lanes[executor].free([(numbers[made_in], here, out)])

    def _give(self, plan: Plan, keys: list[Key]) -> list[dict[int, list[Name]]]:
        """Values from outside go to the executors that read them, one push from each of these to a part. Returns, for
        each part, what it has to await from whom."""
        awaited: list[dict[int, list[Name]]] = []
        for part, transfers in zip(plan.parts, plan.transfers, strict=True):
            by_source: dict[int, tuple[list[Name], Counter[str]]] = {}
            for transfer in transfers:
                if not isinstance(transfer.value, Slot):
                    continue
                key = keys[transfer.value.index]
                place = self.holdings.places[key]
                if part.executor in place.homes:
                    continue
                owner = place.storage.owner
                if owner is None:
                    self.pinned.bind(key[0], part.executor)
                    continue
                source = owner if owner in place.homes else min(place.homes)
                names, kinds = by_source.setdefault(source, ([], Counter()))
                names.append(_name(key))
                kinds[plan.residency(transfer.value)] += place.facts.nbytes
                self.holdings.arrived(key, part.executor)
            for source, (names, kinds) in by_source.items():
                self._send(source, part.executor, names, kinds)
            awaited.append({source: names for source, (names, _) in by_source.items()})
        return awaited

    def _await(self, plan: Plan, at: int, numbers: list[int], given: dict[int, list[Name]]) -> None:
        """Part `at` does not begin before all that it reads is there. given: of `_give`."""
        by_source = {source: list(names) for source, names in given.items()}
        for transfer in plan.transfers[at]:
            if isinstance(transfer.value, Ref):
                by_source.setdefault(transfer.source, []).append(_made(plan, numbers, transfer.value))
        for source, names in by_source.items():
            self._expect(source, plan.parts[at].executor, names)

    def _send_made(self, segment: Segment, plan: Plan, at: int, numbers: list[int]) -> None:
        """What part `at` has made for others sets out."""
        for target, values in plan.sends[at]:
            kinds: Counter[str] = Counter()
            for value in values:
                facts = plan.graph.facts(value) if plan.exact else facts_at(segment, value.row, value.out)
                kinds[plan.residency(value)] += facts.nbytes if facts is not None else 0
            names = [_made(plan, numbers, value) for value in values]
            self._send(plan.parts[at].executor, target, names, kinds)

    def _push(
        self, source: int, target: int, names: list[Name], kinds: Counter[str], whole: bool = False
    ) -> None:
        """Values go, and the other executor waits for them here. kinds: bytes by residency."""
        self._send(source, target, names, kinds, whole)
        self._expect(source, target, names)

    def _send(
        self, source: int, target: int, names: list[Name], kinds: Counter[str], whole: bool = False
    ) -> None:
        flat = tuple(number for name in names for number in name)
        ticket = self.ledger.pushes_to(source, target, flat, kinds)
        self.lanes[source].say(Push(ticket, target, flat, whole))

    def _expect(self, source: int, target: int, names: list[Name]) -> None:
        flat = tuple(number for name in names for number in name)
        self.lanes[target].say(Await(flat, self.lanes[source].transport.address[:200]))

    def _rename(self, segment: Segment, use: Use, numbers: list[int], places: Sequence[Place]) -> None:
        """The values that live on are called what they are called where they were made."""
        plan, storages = use.plan, list[Storage]()
        holdings, graph, straight = self.holdings, self.graphs, plan.straight
        for value, (made, shared) in zip(segment.kept, plan.made, strict=True):
            if not straight:
                value.born = value.segment, value.code
                value.segment, value.code = numbers[made.part], made.code
            if shared is None:
                memory: Storage | None = None
            else:
                memory = places[shared].storage if shared >= 0 else storages[shared + len(plan.made)]
            key = value.segment, value.code
            size = None if made.facts is UNKNOWN else size_of(value.meta)
            if size is None:
                self._unknown.add(key)
            storages.append(holdings.made(key, made, memory, graph, use, size))

    def _move(self, storage: Storage, to: int) -> None:
        """All values of a storage go to another executor, which owns it from then on."""
        source = storage.owner
        assert source is not None
        names = [_name(key) for key in sorted(storage.names)]
        for key in storage.names & self.holdings.places.keys():
            if to in self.holdings.places[key].homes:  # a copy that nobody writes; the whole comes now
                self._free_at([(to, key)])
        kinds: Counter[str] = Counter()
        for key in storage.names:
            place = self.holdings.places[key]
            kind = place.meaning.residency or ""
            kinds[kind] = max(kinds[kind], place.facts.nbytes)
        self._push(source, to, names, kinds, whole=True)
        self._free_at(self.holdings.moved(storage, to))

    def forgive(self) -> None:
        """What found no place is asked for again, and may find one now."""
        self._refused.clear()

    # -- ends

    def free(self, keys: Sequence[Key]) -> None:
        """Values that the program has dropped."""
        self._free_at(self._end(keys))

    def _end(self, keys: Sequence[Key]) -> list[tuple[int, Key]]:
        """Takes note of values that ended; (executor, name) of what executors hold of them."""
        if self._unknown:
            self._unknown.difference_update(keys)
        for key in keys if self._refused else ():
            self._refused.pop(key, None)
        self.pinned.ended(keys)
        if self.ledger.uploading:
            for number, _ in keys:
                self.ledger.used(number, UNUSED)
        return self.holdings.freed(keys)

    def _free_at(self, where: list[tuple[int, Key]]) -> None:
        by_lane: dict[int, list[Name]] = {}
        for executor, key in where:
            by_lane.setdefault(executor, []).append(_name(key))
        for executor, names in by_lane.items():
            self.lanes[executor].uploads.freed(segment for segment, _, _ in names)
            self.lanes[executor].free(names)

    # -- plans

    def _situation(self, places: Sequence[Place], random: tuple[int, ...] = ()) -> Situation:
        return Situation(
            tuple([place.storage.owner for place in places]),
            tuple([place.homes for place in places]),
            tuple(self.holdings.held_nbytes),
            tuple([lane.grant.memory_nbytes for lane in self.lanes]),
            tuple([lane.link.stream.kept_frames for lane in self.lanes]),
            self.programs,
            self.pinned.nbytes,
            self.generators,
            random=random,
            pool=self.planner.pool,
        )


def _made(plan: Plan, numbers: list[int], value: Ref) -> Name:
    """What a value of the plan's graph is called in this run."""
    made_in, row = plan.found[value.row]
    return numbers[made_in], row, value.out


def _name(key: Key) -> Name:
    return key[0], key[1] >> OUT_BITS, key[1] & OUT_MASK
