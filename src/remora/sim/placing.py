"""From a trace to a script: the production planner places each segment as it does for a session (session/placement.py).

The planner, its policies, the bookkeeping of holdings, the coding of runs and the predictor are those of a session.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from remora.capture.recorder import CapturedTemplate
from remora.capture.value import OUT_BITS, OUT_MASK
from remora.errors import ProtocolError, UsageError
from remora.ir.annotated import Facts, Graph
from remora.ir.annotated_text import parse_graph
from remora.ir.graph import Template
from remora.ir.node import Ref, Slot
from remora.plan import trace
from remora.plan.devices import CLIENT, Pool
from remora.plan.duration import Duration
from remora.plan.planner import Planner
from remora.plan.policies.policy import Policy
from remora.plan.record import Key as RecordKey
from remora.plan.record import Record
from remora.plan.situation import Situation
from remora.session.holdings import Holdings, Key, Place, Storage
from remora.session.plans import Plan, Use, plan_of
from remora.session.sites import Sites
from remora.sim import script as scripts
from remora.sim import tape
from remora.sim.script import FREE, Commit, Ends, Lane, Say, Script, Told, Upload, Wait, Work
from remora.wire.binding import SiteMemory, decode_run, encode_run, frees_of
from remora.wire.codec import encode
from remora.wire.limits import MAX_INLINE_NBYTES
from remora.wire.messages import (
    Adopt,
    Await,
    Barrier,
    Define,
    Fetch,
    Free,
    Push,
    Put,
    Run,
    Seed,
    Site,
    ToExecutor,
)

Name = tuple[int, int, int]
REPLY_NBYTES = 24  # of an answer, beside its values
PARCEL_NBYTES = 400  # of a push, beside its values: an HTTP head and a few facts of each (wire/parcel.py)
_DIGEST = bytes(32)


@dataclass
class _Told:
    """What one executor has been told, as session/lane.py says it. ran: of each site, the last run's Told."""

    sites: Sites = field(default_factory=Sites)
    defined: dict[bytes, int] = field(default_factory=dict)
    messages: list[ToExecutor] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    ran: dict[int, Told] = field(default_factory=dict)


@dataclass(frozen=True)
class _Planned:
    """took: of each part, an index of Script.durations."""

    plan: Plan
    took: tuple[int, ...]


@dataclass
class _Segment:
    """One Ran on its way. numbers: of each part's run, on its lane. frees: names that ended, and where they were; once
    it is planned, those that its own run says."""

    event: trace.Ran
    keys: list[Key]
    holes: Sequence[int | float]
    keep: tuple[int, ...]
    wants: tuple[int, ...] | None
    numbers: list[int] = field(default_factory=list)
    frees: list[tuple[int, Name]] = field(default_factory=list)


class Placer:
    """Places one trace.

    Args:
        pool: what the session is granted. record: what runs have shown. run_ahead: whether executors run ahead.
    """

    def __init__(self, pool: Pool, policy: Policy, record: Record, run_ahead: bool = True) -> None:
        self.pool, self.planner, self.record, self.run_ahead = pool, Planner(policy, pool), record, run_ahead
        count = len(pool.devices)
        self.lanes = [_Told() for _ in range(count)]
        self.acts: list[scripts.Act] = []
        self.durations: list[Duration] = []
        self.moved: Counter[tuple[int, int, str]] = Counter()
        self.holdings = Holdings(count)
        self.most = [0] * count
        self.programs = self.graphs = 0
        self._shapes: list[tuple[Graph, Template]] = []
        self._sites: dict[int, SiteMemory] = {}  # of the trace
        self._kept: dict[int, tuple[int, ...]] = {}
        self._plans: dict[object, _Planned] = {}
        self._captured, self._numbers = itertools.count(1), itertools.count(1)
        self._tickets, self._pushes = itertools.count(1), itertools.count()
        self._called: dict[Key, Name] = {}  # what values are called on the lanes
        self._uploads: dict[Key, trace.Put | trace.Stored] = {}  # that no executor has yet
        self._answers: tuple[int, int] | None = None  # lane and message of the last run, if it answers
        self._wanted: tuple[Key, ...] = ()
        self._phases: Counter[str] = Counter()

    # -- events

    def place(self, events: Iterable[trace.Any]) -> Script:
        """The script of a whole trace; its Head has been read.

        Raises:
            PlanError: the pool is too small. UsageError: the trace contradicts itself.
        """
        try:
            for event in events:
                self._event(event)
        except (KeyError, IndexError, ProtocolError) as error:
            raise UsageError(f"the trace speaks of what it has not told: {error}") from None
        lanes = [self._lane(of) for of in self.lanes]
        name = self.planner.policy.name
        return Script(
            self.acts, lanes, self.durations, name, tuple(self.most), dict(self.moved), len(self._plans)
        )

    def _event(self, event: trace.Any) -> None:
        match event:
            case trace.Shape():
                self._shape(event.text)
            case trace.Ran():
                self._ran(event)
            case trace.Put() | trace.Stored():
                self._uploaded(event)
            case trace.Read():
                self._read(event)
            case trace.Freed():
                self._free(self._ended(_keys(event.names)))
            case trace.Asked():
                self._asked(event)
            case trace.Took():
                key = RecordKey(bytes.fromhex(event.template), event.size, event.device)
                self.record.add(key, event.predicted_s, event.measured_s)
            case trace.End():
                self._work(event.own_s)

    def _work(self, seconds: float) -> None:
        if seconds > 0.0:
            self.acts.append(Work(seconds))

    def _shape(self, text: str) -> None:
        try:
            graph = parse_graph(text)
        except ValueError as error:
            raise UsageError(f"graph {len(self._shapes)} of the trace: {error}") from None
        self._shapes.append((graph, Template(tuple(row.node for row in graph.rows))))

    def _uploaded(self, event: trace.Put | trace.Stored) -> None:
        self._work(event.own_s)
        key = event.segment, 0
        self.holdings.uploaded(key, Facts("uint8", (event.nbytes,), 1))
        self._called[key] = next(self._numbers), 0, 0
        self._uploads[key] = event
        if self.planner.policy.indexed:  # the program said where
            self._bind(key, event.index)
        elif len(self.lanes) == 1:  # there is nothing to decide
            self._bind(key, 0)

    def _read(self, event: trace.Read) -> None:
        self._work(event.own_s)
        if self.acts and isinstance(self.acts[-1], Commit):
            self.acts.pop()  # the last segment leaves with the question
        keys = _keys(event.names) or list(self._wanted)
        nbytes = dict(zip(keys, event.nbytes, strict=False))
        waits: list[Wait] = []
        if not event.names and self._answers is not None:
            lane, number = self._answers
            told = self.lanes[lane].told
            told[number] = told[number]._replace(
                reply_nbytes=REPLY_NBYTES + sum(event.nbytes), answer=event.content
            )
            waits.append(Wait(lane, number))
            homes = {lane: keys}
        else:
            homes = self._by_home(keys)
            for lane, here in homes.items():
                names = tuple(n for key in here for n in self._called[key])
                size = REPLY_NBYTES + sum(nbytes.get(key, 0) for key in here)
                fetch = Fetch(next(self._tickets), names, event.describe)
                waits.append(Wait(lane, self._say(lane, fetch, Told(-1, size, event.content))))
        for lane, here in homes.items():
            for key in here:
                self._moves(lane, CLIENT, self.holdings.residency(key), nbytes.get(key, 0))
        self.acts += [Commit(True), *waits]
        self._work(event.after_s)
        self._program_ends()

    def _asked(self, event: trace.Asked) -> None:
        self._work(event.own_s)
        if not event.waits:
            self._say(0, Seed(0), Told())
            self.acts.append(Commit(False))
            return
        waits = [
            Wait(lane, self._say(lane, Barrier(next(self._tickets)), Told(-1, REPLY_NBYTES)))
            for lane in range(len(self.lanes))
        ]
        self.acts += [Commit(True), *waits]
        self._program_ends(event.what == "Barrier")

    def _program_ends(self, waits: bool = False) -> None:
        phase = max(self._phases, key=lambda phase: self._phases[phase], default="")
        self.acts.append(Ends(phase, waits))
        self.programs += bool(self._phases)
        self._phases.clear()

    # -- segments

    def _ran(self, event: trace.Ran) -> None:
        self._work(event.own_s)
        (graph, template), run = self._shapes[event.shape], event.run
        memory = self._sites.setdefault(run.site, SiteMemory(0))
        bound = decode_run(memory, run, template.n_slots, template.holes)
        if event.kept is not None:
            self._kept[run.site] = event.kept
        self.graphs += 1
        keys = [_key(name) for name in bound.names]
        segment = _Segment(event, keys, bound.holes, bound.keep, run.wants)
        segment.frees = self._ended([_key(name) for name in frees_of(memory, run.segment)])
        self._answers, self._wanted = (
            None,
            tuple((run.segment, row << OUT_BITS | out) for row, out in _pairs(run.wants)),
        )
        places = [self.holdings.places[key] for key in keys]
        storages = tuple(place.storage.number for place in places)
        planned = self._plan(segment, graph, places, storages)
        plan = planned.plan
        for slot, executor in plan.moves:
            if places[slot].storage.owner is None:
                self._bind(keys[slot], executor)
            else:
                self._move(places[slot].storage, executor)
        home = plan.parts[0].executor if plan.straight else None
        self._free([pair for pair in segment.frees if pair[0] != home])
        segment.frees = [pair for pair in segment.frees if pair[0] == home]
        segment.numbers = [next(self._numbers) for _ in plan.parts]
        for at in range(len(plan.parts)):
            self._transfer(segment, plan, at)
            self._run(segment, planned, at)
            self._drop(segment, plan, at)
        self._name(segment, plan, storages, places)
        for slot in plan.writes:
            self._free(self._elsewhere(self.holdings.wrote(places[slot].storage)))
        for place, slot_of in zip(places, plan.graph.slots, strict=True):
            place.reads += 1
            place.meaning = slot_of.meaning
        self._phases.update(plan.phases)
        self.most = [max(pair) for pair in zip(self.most, self.holdings.held_nbytes, strict=True)]
        self.acts.append(Commit(False))

    def _plan(
        self, segment: _Segment, graph: Graph, places: Sequence[Place], storages: tuple[int, ...]
    ) -> _Planned:
        """By all that a plan rests on (session/known_plans.py)."""
        situation, policy, event = self._situation(places), self.planner.policy, segment.event
        known = (
            event.shape,
            situation.owners,
            situation.homes,
            tuple(map(storages.index, storages)),
            segment.keep,
            policy.turn(situation) if policy.turns else 0,
        )
        if known not in self._plans:
            slots = tuple(
                replace(self.holdings.outside(key, self.graphs), facts=slot.facts)
                for key, slot in zip(segment.keys, graph.slots, strict=True)
            )
            keep, wants = frozenset(_pairs(segment.keep)), frozenset(_pairs(segment.wants))
            before = self.planner.memory
            whole = Graph(graph.rows, slots, tuple(segment.holes), keep, wants, template=graph.template)
            decision = self.planner.decide(whole, situation)
            if self.planner.memory is not before:
                old = [key for key, one in self._plans.items() if self.planner.is_outdated(one.plan.graph)]
                for each in old:
                    del self._plans[each]
            captured = CapturedTemplate(
                self._shapes[event.shape][1], next(self._captured), (None,) * len(graph.rows)
            )
            number = self._captured.__next__
            plan = plan_of(decision, captured, segment.keep, event.nbytes, situation.homes, number, 0.0)
            self._plans[known] = _Planned(plan, self._durations(plan))
        return self._plans[known]

    def _durations(self, plan: Plan) -> tuple[int, ...]:
        """Of its parts, with what runs on these devices have shown, and what a message costs there."""
        first = len(self.durations)
        for part, predicted in zip(plan.parts, plan.predicted, strict=True):
            device = self.pool.devices[part.executor]
            key = RecordKey(part.template.id, plan.bucket, device.name)
            message = Duration(device.run_s, {f"{device.name}: messages": device.run_s * device.sigma})
            self.durations.append(self.record.correct(key, predicted.less(device.run_s)) + message)
        return tuple(range(first, len(self.durations)))

    def _situation(self, places: Sequence[Place]) -> Situation:
        return Situation(
            tuple(place.storage.owner for place in places),
            tuple(place.homes for place in places),
            tuple(self.holdings.held_nbytes),
            tuple(device.memory_nbytes for device in self.pool.devices),
            (0,) * len(self.lanes),
            self.programs,
            sum(event.nbytes for event in self._uploads.values()),
            pool=self.pool,
        )

    def _run(self, segment: _Segment, planned: _Planned, at: int) -> None:
        plan, part, number = planned.plan, planned.plan.parts[at], segment.numbers[at]
        lane = self.lanes[part.executor]
        if part.template.id not in lane.defined:
            index = lane.defined[part.template.id] = len(lane.defined)
            self._say(part.executor, Define(index, part.template.body), Told())
        names = [self._named(value, segment, plan) for value in part.inputs]
        site, new = lane.sites.choose(lane.defined[part.template.id], number, names)
        if new:
            self._say(part.executor, Site(site.index, site.memory.template), Told())
        uploaded = [
            slot
            for slot, value in enumerate(part.inputs)
            if isinstance(value, Slot) and self.holdings.places[segment.keys[value.index]].made_by is None
        ]
        kept, local = dict.fromkeys(_pairs(segment.keep)), {row: here for here, row in enumerate(part.rows)}
        keep = [(local[row], out) for row, out in kept if row in local]
        keep += sorted((local[row], out) for row, out in part.exports if (row, out) not in kept)
        wants = segment.wants if plan.straight else None
        run = encode_run(
            site.memory,
            number,
            site.index,
            names,
            [segment.holes[hole] for hole in part.holes],
            tuple(n for pair in keep for n in pair),
            tuple(n for _, (old, row, out) in segment.frees for n in (number - old, row, out)),
            wants,
            next(self._tickets) if wants is not None else None,
            frozenset(uploaded) | site.fixed if new else frozenset(),
        )
        told = lane.ran[site.index] = Told(planned.took[at], REPLY_NBYTES if wants is not None else -1)
        said = self._say(part.executor, run, told)
        if wants is not None:
            self._answers = part.executor, said

    def _named(self, value: Ref | Slot, segment: _Segment, plan: Plan) -> Name:
        if isinstance(value, Slot):
            return self._called[segment.keys[value.index]]
        made_in, row = plan.found[value.row]
        return segment.numbers[made_in], row, value.out

    def _name(
        self, segment: _Segment, plan: Plan, storages: tuple[int, ...], places: Sequence[Place]
    ) -> None:
        """The values that live on, by their names in the trace."""
        use, made_in = Use(plan, storages), list[Storage]()
        sizes = self._kept.get(segment.event.run.site, ())
        first = segment.event.run.segment
        for at, (made, shared) in enumerate(plan.made):
            row, out = _pairs(segment.keep)[at]
            if shared is None:
                memory: Storage | None = None
            else:
                memory = places[shared].storage if shared >= 0 else made_in[shared + len(plan.made)]
            nbytes = sizes[at] if at < len(sizes) else made.nbytes
            size = (made.facts, nbytes) if nbytes == made.nbytes else (Facts("uint8", (nbytes,), 1), nbytes)
            key = first, row << OUT_BITS | out
            self._called[key] = segment.numbers[made.part], made.code >> OUT_BITS, made.code & OUT_MASK
            made_in.append(self.holdings.made(key, made, memory, self.graphs, use, size))

    # -- what travels

    def _transfer(self, segment: _Segment, plan: Plan, at: int) -> None:
        """What a part needs from elsewhere: bytes by source."""
        target = plan.parts[at].executor
        by_source: dict[int, list[tuple[Name, str, int]]] = {}
        for transfer in plan.transfers[at]:
            value, residency = transfer.value, plan.residency(transfer.value)
            if isinstance(value, Slot):
                key = segment.keys[value.index]
                place = self.holdings.places[key]
                if target in place.homes:
                    continue
                if place.storage.owner is None:
                    self._bind(key, target)
                    continue
                owner = place.storage.owner
                source = owner if owner in place.homes else min(place.homes)
                by_source.setdefault(source, []).append((self._called[key], residency, place.nbytes))
                self.holdings.arrived(key, target)
            else:
                facts = plan.graph.facts(value)
                name = self._named(value, segment, plan)
                nbytes = facts.nbytes if facts is not None else 0
                by_source.setdefault(transfer.source, []).append((name, residency, nbytes))
        for source, values in by_source.items():
            self._push(source, target, values)

    def _push(self, source: int, target: int, values: Sequence[tuple[Name, str, int]]) -> None:
        names = tuple(n for name, _, _ in values for n in name)
        number = next(self._pushes)
        nbytes = sum(nbytes for _, _, nbytes in values)
        push = scripts.Push(number, target, PARCEL_NBYTES + nbytes)
        self._say(source, Push(next(self._tickets), target, names), Told(push=push))
        self._say(target, Await(names), Told(awaits=(number,)))
        for _, residency, size in values:
            self._moves(source, target, residency, size)

    def _move(self, storage: Storage, to: int) -> None:
        """All values of a storage go to another executor, which owns it from then on."""
        source = storage.owner
        assert source is not None
        values = [
            (self._called[key], str(place.meaning.residency or ""), place.nbytes)
            for key in sorted(storage.names)
            for place in [self.holdings.places[key]]
        ]
        largest = max(nbytes for _, _, nbytes in values)  # they share it
        self._push(
            source, to, [(name, what, largest if not at else 0) for at, (name, what, _) in enumerate(values)]
        )
        self._free(self._elsewhere(self.holdings.moved(storage, to)))

    def _bind(self, key: Key, executor: int) -> None:
        """An upload goes to an executor."""
        event, name = self._uploads.pop(key), self._called[key]
        if isinstance(event, trace.Stored):
            if event.requests:
                self.acts.append(Upload(executor, event.sent_nbytes, event.requests))
            self._say(executor, Adopt(name[0], event.dtype, event.shape, _DIGEST), Told())
        else:
            # as many bytes as they have, and other ones for other contents
            data = event.content.to_bytes(8, "big")[-event.nbytes :].rjust(event.nbytes, b"\0")
            data = data if event.nbytes <= MAX_INLINE_NBYTES else b""
            self._say(executor, Put(name[0], event.dtype, event.shape, data), Told())
        self._moves(CLIENT, executor, "upload", event.nbytes)
        self.holdings.arrived(key, executor)

    def _by_home(self, keys: Sequence[Key]) -> dict[int, list[Key]]:
        found: dict[int, list[Key]] = {}
        for key in keys:
            place = self.holdings.places[key]
            if place.storage.owner is None:
                self._bind(key, self.planner.policy.home(place.nbytes, self._situation(())))
            owner = place.storage.owner
            assert owner is not None
            found.setdefault(owner if owner in place.homes else min(place.homes), []).append(key)
        return found

    def _moves(self, source: int, target: int, residency: str | None, nbytes: int) -> None:
        self.moved[source, target, str(residency or "")] += nbytes

    # -- what ends

    def _ended(self, keys: Sequence[Key]) -> list[tuple[int, Name]]:
        """Values that the program dropped: where, and what they are called there."""
        found = self._elsewhere(self.holdings.freed(keys))
        for key in keys:
            self._called.pop(key, None)
            self._uploads.pop(key, None)
        return found

    def _elsewhere(self, held: Sequence[tuple[int, Key]]) -> list[tuple[int, Name]]:
        return [(executor, self._called[key]) for executor, key in held]

    def _drop(self, segment: _Segment, plan: Plan, at: int) -> None:
        """What only travelled ends."""
        gone = []
        for executor, row, out in plan.drops[at]:
            made_in, here = plan.found[row]
            gone.append((executor, (segment.numbers[made_in], here, out)))
        self._free(gone)

    def _free(self, where: Sequence[tuple[int, Name]]) -> None:
        by_lane: dict[int, list[int]] = {}
        for executor, name in where:
            by_lane.setdefault(executor, []).extend(name)
        for executor, names in by_lane.items():
            self._say(executor, Free(tuple(names)), Told())

    # -- messages

    def _say(self, lane: int, message: ToExecutor, told: Told) -> int:
        """Returns the message's number."""
        of, nbytes = self.lanes[lane], len(encode(message))
        number = FREE
        if not isinstance(message, Free):
            number = len(of.messages)
            of.messages.append(message)
            of.told.append(told)
        self.acts.append(Say(lane, number, nbytes))
        return number

    def _lane(self, of: _Told) -> Lane:
        lane = Lane(of.told, [told.reply_nbytes >= 0 for told in of.told])
        if self.run_ahead:

            def like(message: ToExecutor, ends: bool) -> int:
                """What was only predicted takes what its site took last, and nobody knows its answer."""
                told = of.ran.get(message.site, Told()) if isinstance(message, Run) else Told()
                number = len(lane.told)
                reply = max(told.reply_nbytes, REPLY_NBYTES) if ends else -1
                lane.told.append(told._replace(reply_nbytes=reply, answer=-number))
                lane.ends.append(ends)
                return number

            lane.tape = tape.record(of.messages, like)
        return lane


def _key(name: Sequence[int]) -> Key:
    return name[0], name[1] << OUT_BITS | name[2]


def _keys(flat: tuple[int, ...]) -> list[Key]:
    numbers = iter(flat)
    return [_key(name) for name in zip(numbers, numbers, numbers, strict=True)]


def _pairs(flat: Sequence[int] | None) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True)) if flat else []
