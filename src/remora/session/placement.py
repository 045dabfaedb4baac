"""Segments over several executors: where each row runs, what travels, and what the values are called afterwards.

A segment becomes a graph, the policy places its rows, and each part of it is an ordinary run on its executor's lane,
with a segment number of its own. The values that live on take the names that they have there. Plans are made once
for a template, a size and a whereabouts of its inputs.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from remora.capture.recorder import CapturedTemplate, Segment
from remora.capture.value import OUT_BITS, OUT_MASK
from remora.errors import PlanError
from remora.ir.annotated import Facts, Graph, Stage
from remora.ir.node import Ref, Slot
from remora.ir.stages import enter
from remora.plan.legal import Legal, legalised
from remora.plan.parts import Part, Parts, Transfer, placed, split
from remora.plan.policies.policy import Policy
from remora.plan.situation import Situation
from remora.semantics.annotate import annotate
from remora.semantics.memory import EMPTY
from remora.session.graphs import dropout_holes, facts_of, graph_of, random_rows
from remora.session.holdings import Holdings, Key, Place, Storage
from remora.session.lane import Lane
from remora.wire.messages import Adopt, Await, Push, Put

Name = tuple[int, int, int]
UNKNOWN = Facts("uint8", (0,), 1)  # of a value whose shape only the data tells, until it is described
PINNED_NBYTES = (
    256 << 20
)  # of uploads that wait for their first use; they are copies, since the program may write on


@dataclass(frozen=True)
class Upload:
    """Bytes of the client that no executor has yet. digest: None for what is small enough to go in a message."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    digest: bytes | None


@dataclass(frozen=True)
class Plan:
    """How a template runs.

    captured: of each part. found: where each row's outputs are made: part and row there. moves: positions of slots
    whose memory gets another owner first. writes: slots whose memory is written. shared: for an output that lies in
    a slot's memory, that slot. aliases: for one that lies in
    another output's memory, that output. drops: after each part, (executor, row, out) of what only travelled and ends.
    copies: (executor, row, out) of what lives on at an executor that did not make it.
    """

    parts: tuple[Part, ...]
    captured: tuple[CapturedTemplate, ...]
    transfers: tuple[tuple[Transfer, ...], ...]
    found: tuple[tuple[int, int], ...]
    moves: tuple[tuple[int, int], ...]
    writes: tuple[int, ...]
    shared: dict[tuple[int, int], int]
    aliases: dict[tuple[int, int], tuple[int, int]]
    facts: dict[tuple[int, int], Facts]
    drops: tuple[tuple[tuple[int, int, int], ...], ...]
    copies: tuple[tuple[int, int, int], ...]
    reason: str
    graph: Graph = field(repr=False)


class Placement:
    """The state of placing one session's segments.

    Args:
        number: gives a fresh segment number.
        ticket: gives a fresh ticket.
    """

    def __init__(
        self, lanes: Sequence[Lane], policy: Policy, number: Callable[[], int], ticket: Callable[[], int]
    ) -> None:
        self.lanes, self.policy = lanes, policy
        self.holdings = Holdings(len(lanes))
        self.plans_made = 0
        self.programs = 0
        self.graphs = 0
        self._graphs_before = 0  # this program
        self._number, self._ticket = number, ticket
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._captured = itertools.count(-1, -1)
        self._uploads: dict[int, Upload] = {}  # oldest first
        self._pinned_nbytes = 0
        self._bulk: deque[tuple[Lane, int, bytes, memoryview]] = deque()
        self._memory = EMPTY
        self._gates: dict[bytes, tuple[int, ...]] = {}
        self.pushes: dict[
            int, tuple[int, int, tuple[int, ...]]
        ] = {}  # ticket to source, target and names, unanswered

    # -- values from outside

    def uploaded(self, segment: int, upload: Upload, facts: Facts) -> None:
        """The client has a value; it goes where it is used first, or when too much waits."""
        self._uploads[segment] = upload
        self._pinned_nbytes += len(upload.data)
        self.holdings.uploaded((segment, 0), facts)
        while self._pinned_nbytes > PINNED_NBYTES:
            oldest = next(iter(self._uploads))
            place = self.holdings.places[oldest, 0]
            self._bind(oldest, self.policy.home(place.facts.nbytes, self._situation([])))

    def home(self, key: Key) -> int:
        """The executor that has a value; an upload that none has yet goes to one."""
        place = self.holdings.places[key]
        if place.storage.owner is None:
            self._bind(key[0], self.policy.home(place.facts.nbytes, self._situation([])))
        owner = place.storage.owner
        assert owner is not None
        return owner if owner in place.homes else min(place.homes)

    def bring(self, key: Key, executor: int) -> None:
        """Makes sure that an executor has a value."""
        place = self.holdings.places[key]
        if place.storage.owner is None:
            self._bind(key[0], executor)
        elif executor not in place.homes:
            self._push(self.home(key), executor, [_name(key)])
            self.holdings.arrived(key, executor)

    def _bind(self, segment: int, executor: int) -> None:
        """Sends an upload to the executor that owns it from then on."""
        upload, lane = self._uploads.pop(segment), self.lanes[executor]
        self._pinned_nbytes -= len(upload.data)
        if upload.digest is None:
            lane.post(Put(segment, upload.dtype, upload.shape, upload.data), len(upload.data))
        else:
            self._bulk.append((lane, segment, upload.digest, memoryview(upload.data)))
            lane.say(Adopt(segment, upload.dtype, upload.shape, upload.digest))
        self.holdings.arrived((segment, 0), executor)

    def program_ends(self) -> None:
        """A sync. A program of nothing is none."""
        self.programs += self.graphs > self._graphs_before
        self._graphs_before = self.graphs

    @property
    def has_bulk(self) -> bool:
        """Whether bytes have to go before the messages that name them."""
        return bool(self._bulk)

    def send_bulk(self) -> None:
        """Sends the bytes of uploads that were bound. May be interrupted, and goes on then when it is called again."""
        while self._bulk:
            lane, segment, digest, data = self._bulk[0]
            lane.link.persist(functools.partial(lane.uploads.ensure, digest, data))
            lane.uploads.adopted(segment, digest)
            self._bulk.popleft()

    # -- segments

    def write(self, segment: Segment) -> list[int]:
        """Appends a segment's runs and transfers to the lanes; renames what it made. Returns the lanes in use."""
        self.graphs += 1
        self._free(self._frees(segment))
        keys = [(value.segment, value.code) for value in segment.slots]
        places = [self.holdings.places[key] for key in keys]
        for place, value in zip(places, segment.slots, strict=True):
            if place.facts is UNKNOWN:
                place.facts = facts_of(value.meta)
        plan = self._plan(segment, keys, places)
        for slot, executor in plan.moves:
            if places[slot].storage.owner is None:
                self._bind(keys[slot][0], executor)
            else:
                self._move(places[slot].storage, executor)
        numbers = [self._number() for _ in plan.parts]
        for at, part in enumerate(plan.parts):
            self._run(segment, plan, at, part, numbers, keys)
        self._rename(segment, plan, numbers, places)
        for slot in plan.writes:
            self._free_at(self.holdings.wrote(places[slot].storage))
        for place in places:
            place.reads += 1
        return sorted({part.executor for part in plan.parts})

    def _run(
        self, segment: Segment, plan: Plan, at: int, part: Part, numbers: list[int], keys: list[Key]
    ) -> None:
        lane, number = self.lanes[part.executor], numbers[at]
        self._transfer(plan, at, numbers, keys)

        def name(value: Ref | Slot) -> Name:
            if isinstance(value, Slot):
                return _name(keys[value.index])
            made_in, row = plan.found[value.row]
            return numbers[made_in], row, value.out

        kept = dict.fromkeys(_pairs(segment.keep))
        local = {row: here for here, row in enumerate(part.rows)}
        keep = [(local[row], out) for row, out in kept if row in local]
        exported = sorted((local[row], out) for row, out in part.exports if (row, out) not in kept)
        lane.run(
            plan.captured[at],
            number,
            [name(value) for value in part.inputs],
            [segment.holes[hole] for hole in part.holes],
            tuple(n for pair in (*keep, *exported) for n in pair),
            (),
        )
        for executor, row, out in plan.drops[at]:
            made_in, here = plan.found[row]
            self.lanes[executor].free([(numbers[made_in], here, out)])

    def _transfer(self, plan: Plan, at: int, numbers: list[int], keys: list[Key]) -> None:
        """What part `at` reads from other executors, one push from each of them."""
        by_source: dict[int, list[Name]] = {}
        target = plan.parts[at].executor
        for transfer in plan.transfers[at]:
            if isinstance(transfer.value, Slot):
                key = keys[transfer.value.index]
                place = self.holdings.places[key]
                if target in place.homes:
                    continue
                owner = place.storage.owner
                if owner is None:
                    self._bind(key[0], target)
                    continue
                source = owner if owner in place.homes else min(place.homes)
                by_source.setdefault(source, []).append(_name(key))
                self.holdings.arrived(key, target)
            else:
                made_in, row = plan.found[transfer.value.row]
                by_source.setdefault(transfer.source, []).append((numbers[made_in], row, transfer.value.out))
        for source, names in by_source.items():
            self._push(source, target, names)

    def _push(self, source: int, target: int, names: list[Name], whole: bool = False) -> None:
        flat, ticket = tuple(number for name in names for number in name), self._ticket()
        self.pushes[ticket] = source, target, flat
        self.lanes[source].say(Push(ticket, target, flat, whole))
        self.lanes[target].say(Await(flat, self.lanes[source].transport.address[:200]))

    def _rename(self, segment: Segment, plan: Plan, numbers: list[int], places: list[Place]) -> None:
        """The values that live on are called what they are called where they were made."""
        storages: dict[tuple[int, int], Storage] = {}
        for value in segment.kept:
            row, out = value.code >> OUT_BITS, value.code & OUT_MASK
            made_in, local = plan.found[row]
            value.segment, value.code = numbers[made_in], local << OUT_BITS | out
            slot = plan.shared.get((row, out))
            if slot is not None:
                shared: Storage | None = places[slot].storage
            else:
                shared = storages.get(plan.aliases.get((row, out), (row, out)))
            place = self.holdings.made(
                (value.segment, value.code),
                plan.facts.get((row, out), UNKNOWN),
                plan.parts[made_in].executor,
                shared,
                (segment.captured.template.nodes[row], out),
                self.graphs,
                plan.graph.rows[row].meaning,
            )
            storages.setdefault(plan.aliases.get((row, out), (row, out)), place.storage)
            for executor, copied_row, copied_out in plan.copies:
                if (copied_row, copied_out) == (row, out):
                    self.holdings.arrived((value.segment, value.code), executor)

    def _move(self, storage: Storage, to: int) -> None:
        """All values of a storage go to another executor, which owns it from then on."""
        source = storage.owner
        assert source is not None
        names = [_name(key) for key in sorted(storage.names)]
        for key in storage.names & self.holdings.places.keys():
            if to in self.holdings.places[key].homes:  # a copy that nobody writes; the whole comes now
                self._free_at([(to, key)])
        self._push(source, to, names, whole=True)
        self._free_at(self.holdings.moved(storage, to))

    # -- ends

    def _frees(self, segment: Segment) -> list[Key]:
        frees = segment.frees
        return [
            (segment.number - distance, row << OUT_BITS | out)
            for distance, row, out in zip(frees[::3], frees[1::3], frees[2::3], strict=True)
        ]

    def free(self, keys: Sequence[Key]) -> None:
        """Values that the program has dropped."""
        self._free(keys)

    def _free(self, keys: Sequence[Key]) -> None:
        for segment, _ in keys:
            upload = self._uploads.pop(segment, None)
            if upload is not None:
                self._pinned_nbytes -= len(upload.data)
        self._free_at(self.holdings.freed(keys))

    def _free_at(self, where: list[tuple[int, Key]]) -> None:
        by_lane: dict[int, list[Name]] = {}
        for executor, key in where:
            by_lane.setdefault(executor, []).append(_name(key))
        for executor, names in by_lane.items():
            self.lanes[executor].uploads.freed(segment for segment, _, _ in names)
            self.lanes[executor].free(names)

    # -- plans

    def _situation(self, places: Sequence[Place]) -> Situation:
        return Situation(
            tuple(place.storage.owner for place in places),
            tuple(frozenset(place.homes) for place in places),
            tuple(self.holdings.held_nbytes),
            tuple(lane.grant.memory_nbytes for lane in self.lanes),
            tuple(lane.link.stream.kept_frames for lane in self.lanes),
            self.programs,
            None if self.policy.indexed else 0,
        )

    def _plan(self, segment: Segment, keys: list[Key], places: list[Place]) -> Plan:
        situation = self._situation(places)
        first: dict[int, int] = {}
        template = segment.captured.template
        gates = self._gates.get(template.id)
        if gates is None:
            gates = self._gates[template.id] = dropout_holes(template)
        largest = max((place.facts.nbytes for place in places), default=0)
        key = (
            template.id,
            largest.bit_length(),
            situation.owners,
            situation.homes,
            tuple(first.setdefault(place.storage.number, at) for at, place in enumerate(places)),
            segment.keep,
            tuple(segment.holes[hole] != 0 for hole in gates),
            self.policy.turn(situation),
        )
        plan = self._plans.get(key)
        if plan is None:
            outside = [self.holdings.outside(key, self.graphs) for key in keys]
            plan = self._plans[key] = self._made(graph_of(segment, outside), segment, situation)
            self.plans_made += 1
        return plan

    def _made(self, graph: Graph, segment: Segment, situation: Situation) -> Plan:
        graph, self._memory = annotate(graph, self._memory)
        wish = self.policy.place(graph, situation)
        legal = legalised(graph, wish.executors, situation, random_rows(graph))
        if self.policy.indexed and legal != Legal(wish.executors, ()):
            raise PlanError("rows of different devices share memory")
        graph = enter(placed(graph, legal.executors), Stage.PLACED)
        owners = dict(legal.moves)
        bound = tuple(
            owners.get(slot.storage, at) for slot, at in zip(graph.slots, situation.owners, strict=True)
        )
        homes = tuple(
            frozenset({owners[slot.storage]}) if slot.storage in owners else home
            for slot, home in zip(graph.slots, situation.homes, strict=True)
        )
        split_up = split(graph, homes, tuple(-1 if at is None else at for at in bound))
        found = {
            row: (at, here) for at, part in enumerate(split_up.parts) for here, row in enumerate(part.rows)
        }
        shared, aliases = _sharing(graph)
        slots = {slot.storage: index for index, slot in enumerate(graph.slots)}
        written = {graph.storage(row.tensors()[at]) for row in graph.rows for at in row.writes}
        for row in range(len(graph.rows)):
            if row not in found:
                raise PlanError(f"row {row} is in no part")
        return Plan(
            split_up.parts,
            tuple(self._part_captured(segment.captured, part) for part in split_up.parts),
            tuple(
                tuple(transfer for transfer in split_up.transfers if transfer.before == at)
                for at in range(len(split_up.parts))
            ),
            tuple(found[row] for row in range(len(graph.rows))),
            tuple((slots[storage], executor) for storage, executor in legal.moves),
            tuple(sorted(slots[number] for kind, number, _ in written if kind == "slot")),
            shared,
            aliases,
            {
                (number, out): facts
                for number, row in enumerate(graph.rows)
                for out, facts in enumerate(row.outs)
                if facts is not None
            },
            *_ends(graph, split_up),
            wish.reason,
            graph,
        )

    def _part_captured(self, whole: CapturedTemplate, part: Part) -> CapturedTemplate:
        return CapturedTemplate(
            part.template, next(self._captured), tuple(whole.where[row] for row in part.rows)
        )


def _sharing(graph: Graph) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], tuple[int, int]]]:
    """For outputs that do not have memory of their own: the slot, or the output, whose memory they lie in."""
    shared: dict[tuple[int, int], int] = {}
    aliases: dict[tuple[int, int], tuple[int, int]] = {}
    index = {slot.storage: at for at, slot in enumerate(graph.slots)}
    for number, row in enumerate(graph.rows):
        for out in range(len(row.outs)):
            kind, at, made = graph.storage(Ref(number, out))
            if kind == "slot":
                shared[number, out] = index[at]
            elif (at, made) != (number, out):
                aliases[number, out] = at, made
    return shared, aliases


def _ends(
    graph: Graph, parts: Parts
) -> tuple[tuple[tuple[tuple[int, int, int], ...], ...], tuple[tuple[int, int, int], ...]]:
    """Plan.drops and Plan.copies."""
    drops: list[list[tuple[int, int, int]]] = [[] for _ in parts.parts]
    copies: list[tuple[int, int, int]] = []
    last_used: dict[tuple[int, int, int], int] = {}
    for transfer in parts.transfers:
        value = transfer.value
        if isinstance(value, Ref):
            at_source, at_target = (
                (transfer.source, value.row, value.out),
                (transfer.target, value.row, value.out),
            )
            last_used[at_source] = max(last_used.get(at_source, 0), transfer.before)
            if (value.row, value.out) in graph.keep:
                copies.append(at_target)
            else:
                last_used.setdefault(at_target, 0)
    exported = {pair for part in parts.parts for pair in part.exports}
    for at, part in enumerate(parts.parts):
        for value in part.inputs:
            if isinstance(value, Ref) and (value.row, value.out) in exported:
                use = part.executor, value.row, value.out
                last_used[use] = max(last_used.get(use, 0), at)
    for (executor, row, out), at in sorted(last_used.items()):
        if (row, out) not in graph.keep:
            drops[at].append((executor, row, out))
    return tuple(map(tuple, drops)), tuple(copies)


def _pairs(flat: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _name(key: Key) -> Name:
    return key[0], key[1] >> OUT_BITS, key[1] & OUT_MASK
