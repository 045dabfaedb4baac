"""One session over several executors: a lane to each, and a placement that says what goes where."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from remora.capture.interrupts import uninterrupted
from remora.capture.recorder import Segment
from remora.capture.value import Value
from remora.config import ClientSettings
from remora.device.census import living
from remora.device.counters import counters
from remora.device.sink import Fetched, Moment
from remora.errors import ExecutorError, RemoraError
from remora.plan.planner import Planner
from remora.session.explaining import Observed
from remora.session.given import Given
from remora.session.lane import Lane
from remora.session.link import Reply
from remora.session.placement import Placement
from remora.session.session import Question
from remora.session.stats import Stats
from remora.session.weighty import holding
from remora.transport.interface import Transport
from remora.wire.messages import (
    Barrier,
    DeviceQuery,
    Fetch,
    Grant,
    Marked,
    Memory,
    MemoryQuery,
    Peer,
    Pushed,
    PushFailed,
    Values,
)

ABANDON_S = 2.0
PUSH_ANSWER_S = 0.05


class PoolSession(Given):
    """Implements device.sink.Sink over several executors. Where they are one device, its index is 0, and so is that
    of the executor where the place in the op stream is marked."""

    reads_ahead = False  # of several executors, each would be asked

    def __init__(
        self, opened: Sequence[tuple[Transport, Grant]], settings: ClientSettings, planner: Planner
    ) -> None:
        self._start(opened, settings)
        recorder = self.recorder
        self.placement = Placement(
            self.lanes, planner, recorder.number, recorder.renumber, lambda: next(self._tickets)
        )
        self._indexed = planner.policy.indexed
        recorder.whole_calls = self.whole_calls and not self._indexed
        recorder.appended = [] if recorder.whole_calls else None  # to place rows, their sizes must be known
        if planner.passes:
            recorder.holds = holding(planner.pool)
        self._generators = {0}
        self.peer_nbytes: Counter[tuple[int, int]] = Counter()  # sent, by source and target
        self._peer_messages = 0
        self._push_failure: PushFailed | None = None
        self._watching = False
        for index, lane in enumerate(self.lanes):
            lane.link.on_mark = self._marked
            lane.link.on_push = self._pushed
            lane.link.living = functools.partial(self._living_at, index)
            lane.link.meanwhile = self._watch
            for other, peer in enumerate(self.lanes):
                if other != index:
                    grant = peer.grant
                    lane.say(Peer(other, peer.transport.address, grant.session, grant.push_secret))

    @property
    def n_devices(self) -> int:
        return len(self.lanes) if self._indexed else 1

    def _living_at(self, executor: int) -> str:
        """What the program still holds that no other executor has."""
        find = self.placement.holdings.find

        def is_there_alone(value: Value) -> bool:
            place = find((value.segment, value.code))
            return place is not None and place.homes == {executor}

        found = living(self.grant.session, is_there_alone)
        return f": {found}" if found else " (none that the program still holds)"

    # -- steps

    def _commit_segment(self, segment: Segment) -> None:
        self._place(segment)
        for lane in self.lanes:
            lane.commit(asks=False)

    def _place(self, segment: Segment, wanted: Sequence[Value] = (), ticket: int | None = None) -> int | None:
        """Returns the executor that was asked for the values with the segment, if one was.

        Args:
            wanted: values whose bytes the client asks for next. ticket: of that question.
        """
        if self.tap is not None:
            self.tap(segment)
        number = segment.number
        made = [value.code for value in wanted if value.segment == number]
        self.segments += 1
        return self.placement.write(segment, made, ticket if len(made) == len(wanted) else None)

    def _commit(self) -> None:
        for lane in self.lanes:
            lane.commit()

    def _transmit(self) -> None:
        self.placement.pinned.send_bulk()
        for lane in self.lanes:  # all first: one that waits for another's values acknowledges late
            lane.link.send()
        for lane in self.lanes:
            lane.link.transmit()

    # -- sync

    def fetch(self, values: list[Value], describe: bool = False) -> list[Fetched]:
        with self.recorder.lock:
            self._check()
            ticket = next(self._tickets)
            by_lane: dict[int, list[int]] = {}

            def questions() -> dict[int, Question]:
                for position, value in enumerate(values):
                    home = self.placement.home((value.segment, value.code))
                    by_lane.setdefault(home, []).append(position)
                return {
                    home: Fetch(
                        next(self._tickets), tuple(n for at in positions for n in values[at].name), describe
                    )
                    for home, positions in by_lane.items()
                }

            replies = self._ask_lanes(questions, values, None if describe else ticket)
            if not by_lane:  # asked with the segment that makes them
                by_lane = {home: list(range(len(values))) for home in replies}
            found: dict[int, Fetched] = {}
            for home, positions in by_lane.items():
                reply = replies[home]
                assert isinstance(reply, Values)
                for at, payload in zip(positions, reply.values, strict=True):
                    found[at] = self._fetched(values[at], payload, self.lanes[home])
                    if not describe:
                        nbytes = len(payload.data) if payload.data is not None else payload.nbytes
                        self.placement.returned(values[at], home, nbytes)
            return [found[at] for at in range(len(values))]

    def _ask(self, question: Question, index: int = 0) -> Reply:
        """Asks the executor that is a device, for what belongs to a device. Else asks all of them; the answer of the
        first, or the sum of what they hold."""
        if self._indexed and isinstance(question, MemoryQuery | DeviceQuery):
            return self._ask_lanes(lambda: {index: question})[index]
        replies = self._ask_lanes(
            lambda: {at: _under(question, next(self._tickets)) for at in range(len(self.lanes))}
        )
        first = replies[0]
        if isinstance(first, Memory):
            return _summed([reply for reply in replies.values() if isinstance(reply, Memory)])
        return first

    def _ask_lanes(
        self,
        questions: Callable[[], dict[int, Question]],
        wanted: Sequence[Value] = (),
        ticket: int | None = None,
    ) -> dict[int, Reply]:
        """Sends the open segment and questions behind it; blocks until all are answered.

        Args:
            questions: to be asked for once the segment is placed, unless it could take the question with it.
            wanted: the values that they are about. ticket: of asking for their bytes with the segment.
        """
        self.progress.done()
        due = [lane.due() for lane in self.lanes]
        with uninterrupted:
            segment = self.recorder.end_segment()
            with_it = self._place(segment, wanted, ticket) if segment is not None else None
            segment = None
            if with_it is not None and ticket is not None:
                asked = {with_it: ticket}
            else:
                said = questions()
                asked = {at: question.ticket for at, question in said.items()}
                for at, question in said.items():
                    self.lanes[at].say(question)
            waits = any(due[at] or not self.lanes[at].has(awaited) for at, awaited in asked.items())
            for lane in self.lanes:
                lane.commit(asks=waits)
            self.recorder.program_ends()
            self.placement.program_ends()
        self.placement.pinned.send_bulk()
        for lane in self.lanes:
            lane.link.send()
        replies: dict[int, Reply] = {}
        for at, awaited in asked.items():
            reply = self.lanes[at].link.wait(awaited)
            if reply is None:
                break
            replies[at] = reply
        try:
            self._raise_failures(replies.keys())
        except RemoraError:
            self.placement.ledger.program_fails()
            raise
        for at in asked:
            self.lanes[at].answered()
        phase = self.placement.ledger.program_ends(time.perf_counter())
        if phase is not None:
            with uninterrupted:
                self._free_ended()
            phase.living, phase.living_at = self.placement.holdings.living(), phase.steps
        return replies

    def _raise_failures(self, answered: Collection[int]) -> None:
        """Raises the first thing that went wrong, after all its consequences on other executors have come in.

        answered: lanes that have just said that all went well there.
        """
        for at, lane in enumerate(self.lanes):
            if at not in answered and lane.link.stream.kept_frames:
                lane.link.poll()
        if not any(lane.link.failed for lane in self.lanes) and self._push_failure is None:
            return
        for lane in self.lanes:
            if lane.link.failed is None:
                barrier = Barrier(next(self._tickets))
                lane.say(barrier)
                lane.commit()
                lane.link.send()
                lane.link.wait(barrier.ticket)
        failed = [lane for lane in self.lanes if lane.link.failed is not None]
        failed.sort(key=_failed_segment)  # what reads a value runs in a later segment than what makes it
        errors: list[RemoraError] = []
        for lane in failed:
            try:
                lane.raise_failure()
            except ExecutorError as error:
                errors.append(error)
        failure, self._push_failure = self._push_failure, None
        if errors:
            raise errors[0]
        assert failure is not None
        raise ExecutorError(f"a value did not get from one executor to another: {failure.message}")

    def _pushed(self, answer: Pushed | PushFailed) -> None:
        if isinstance(answer, Pushed):
            push = self.placement.ledger.pushes.get(answer.ticket)
            if push is not None:
                self.peer_nbytes[push.source, push.target] += answer.nbytes
            self._peer_messages += 1
            self.placement.ledger.pushed(answer)
            return
        if answer.kind != "value":  # else its row has failed, and says so itself
            self._push_failure = answer
        push = self.placement.ledger.pushes.pop(answer.ticket, None)
        if push is not None:
            source = self.lanes[push.source].transport.address
            self._abandon(push.target, push.names, f"{source}: {answer.message}")

    def _marked(self, marked: Marked) -> None:
        if not self.placement.ledger.marked(marked):
            super()._marked(marked)

    def _abandon(self, target: int, names: tuple[int, ...], reason: str) -> None:
        """Nobody will send these values any more."""
        lane = self.lanes[target]
        with suppress(RemoraError, OSError):  # then its lease ends what waits
            lane.transport.abandon(lane.grant, names, reason[:4000], ABANDON_S)

    def _watch(self) -> None:
        """While one executor is waited for: what the others say, and whether one is gone that it waits for."""
        if self._watching:
            return
        self._watching = True
        try:
            for at, lane in enumerate(self.lanes):
                if lane.link.lost is None:
                    with suppress(RemoraError):
                        lane.link.poll()
                if lane.link.lost is not None:
                    self._forget_pushes(at, lane.link.lost)
        finally:
            self._watching = False

    def _forget_pushes(self, source: int, reason: str) -> None:
        pushes = self.placement.ledger.pushes
        for ticket, push in list(pushes.items()):
            if push.source == source:
                del pushes[ticket]
                self._abandon(push.target, push.names, reason)

    def _check(self) -> None:
        if self.recorder.closed is not None:
            raise self.recorder.closed
        for lane in self.lanes:
            lane.link.check_alive()

    # -- order

    def passed(self, moment: Moment, wait: bool) -> bool:
        with self.recorder.lock:
            with uninterrupted:
                self._commit()
            self._transmit()
            return super().passed(moment, wait)

    # -- what the executors are

    def op_table(self) -> dict[str, str]:
        """What all of them run in the same form."""
        with self.recorder.lock:
            self._check()
            tables = [table for table in (lane.ops.table() for lane in self.lanes) if table]
            if not tables:
                return {}
            first, *others = tables
            return {op: digest for op, digest in first.items() if all(t.get(op) == digest for t in others)}

    def executor(self) -> str:
        return "executors " + ", ".join(
            f"{lane.transport.address} (torch {lane.grant.torch})" for lane in self.lanes
        )

    def memory_nbytes(self, index: int = 0) -> int:
        if self._indexed:
            return self.lanes[index].grant.memory_nbytes
        return sum(lane.grant.memory_nbytes for lane in self.lanes)

    # -- life

    def _free_ended(self) -> None:
        self.placement.free(self.recorder.take_frees())

    def idle(self) -> None:
        if not self.recorder.lock.acquire(blocking=False):
            return
        try:
            if self.recorder.closed is None and not self.placement.pinned.has_bulk:
                self._free_ended()
                self._commit()
                for lane in self.lanes:
                    lane.link.idle()
        finally:
            self.recorder.lock.release()

    def _settle_pushes(self) -> None:
        """Waits a little for the answers to pushes whose values may be there already."""
        until = time.monotonic() + PUSH_ANSWER_S
        while self.placement.ledger.pushes and time.monotonic() < until:
            for source in {push.source for push in self.placement.ledger.pushes.values()}:
                if self.lanes[source].link.lost is None:
                    self.lanes[source].link.poll()
            time.sleep(0.0005)

    def stats(self) -> Stats:
        with self.recorder.lock:
            if self.recorder.closed is None:
                with suppress(RemoraError):  # what went wrong is raised where something is waited for
                    self._settle_pushes()
            each = [lane.stats() for lane in self.lanes]
            total = each[0]
            for other in each[1:]:
                total = total + other
            return dataclasses.replace(
                total,
                segments=self.segments,
                templates=self.recorder.templates,
                ops=self.recorder.ops,
                eager_frames=counters.eager_frames,
                whole_calls=counters.whole_calls,
                capture_route=counters.route,
                plans=self.placement.plans.made,
                peer_bytes=self.peer_nbytes.total(),
                peer_messages=self._peer_messages,
            )

    def observed(self) -> Observed:
        """What is needed to explain the session; once it is closed, this does not change any more."""
        with self.recorder.lock:
            if self.recorder.closed is None:
                with uninterrupted:
                    self._free_ended()
            placement = self.placement
            return Observed(
                placement.policy.name,
                [(lane.transport.address, lane.grant) for lane in self.lanes],
                placement.planner.pool,
                placement.holdings,
                placement.ledger,
                placement.pinned.nbytes,
                self.stats(),
            )

    def close(self, reason: Exception) -> None:
        with self.recorder.lock:
            self.recorder.closed = reason
            self.progress.done()
            for lane in self.lanes:
                lane.link.close()
                if os.getpid() == self.pid and lane.link.lost is None:
                    with suppress(RemoraError, OSError):  # else the lease ends it
                        lane.transport.close_session(lane.grant, 2.0)
                lane.transport.close()


def _under(question: Question, ticket: int) -> Question:
    """The same question under another ticket."""
    if isinstance(question, MemoryQuery):
        return MemoryQuery(ticket, question.reset_peak)
    return type(question)(ticket)  # type: ignore[call-arg]


def _summed(replies: list[Memory]) -> Memory:
    fields = Memory.__struct_fields__[1:]
    return Memory(0, *(sum(getattr(reply, name) for reply in replies) for name in fields))


def _failed_segment(lane: Lane) -> int:
    assert lane.link.failed is not None
    return lane.link.failed.segment
