"""One session: what the device records goes out, what it asks for comes back."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from weakref import WeakValueDictionary

from blake3 import blake3

from remora.capture.interrupts import uninterrupted
from remora.capture.recorder import Recorder, Segment
from remora.capture.value import OUT_BITS, OUT_MASK, Value
from remora.config import ClientSettings
from remora.device.census import living
from remora.device.counters import counters
from remora.device.sink import Fetched, Moment
from remora.errors import ProtocolError, RemoraError
from remora.session.lane import Lane
from remora.session.link import Link, Reply
from remora.session.progress import UploadProgress
from remora.session.stats import Stats
from remora.session.uploads import Uploads
from remora.transport.interface import Transport
from remora.wire.limits import MAX_INLINE_NBYTES
from remora.wire.messages import (
    Adopt,
    Barrier,
    DefaultDtype,
    DeviceFacts,
    DeviceQuery,
    Fetch,
    Flag,
    Grant,
    LoadRng,
    Mark,
    Marked,
    Memory,
    MemoryQuery,
    Payload,
    Put,
    SaveRng,
    Seed,
    Values,
)

Question = Fetch | Barrier | MemoryQuery | DeviceQuery


class Session:
    """Implements device.sink.Sink. Every public method takes the recorder's lock.

    Ctrl-C may come anywhere. What must stay together happens uninterrupted and waits for nothing: taking a
    segment from the recorder, writing it into messages, committing them to the link.
    """

    computes = True
    whole_calls = True
    reads_ahead = True  # what is small and likely to be read comes with a branch

    def __init__(self, transport: Transport, grant: Grant, settings: ClientSettings) -> None:
        self._start([(transport, grant)], settings)

    def _start(self, opened: Sequence[tuple[Transport, Grant]], settings: ClientSettings) -> None:
        self.progress = UploadProgress(opened[0][0].address)
        self.lanes = [
            Lane(transport, grant, settings, self._living, self.progress.add) for transport, grant in opened
        ]
        self.lane = self.lanes[0]
        self.recorder = Recorder(self.grant.session, self._commit_segment, self._transmit)
        self.recorder.whole_calls = self.whole_calls
        self.recorder.reads_ahead = self.reads_ahead
        self.pid = os.getpid()
        self.segments = 0
        self.tap: Callable[[Segment], None] | None = None  # sees each segment before it is sent
        self._tickets = itertools.count(1)
        self._moments: WeakValueDictionary[int, Moment] = WeakValueDictionary()
        self._facts: dict[int, DeviceFacts] = {}
        self.link.on_mark = self._marked

    def _transmit(self) -> None:
        self.link.transmit()

    @property
    def link(self) -> Link:
        return self.lane.link

    @property
    def transport(self) -> Transport:
        return self.lane.transport

    @property
    def grant(self) -> Grant:
        return self.lane.grant

    @property
    def uploads(self) -> Uploads:
        return self.lane.uploads

    @property
    def n_devices(self) -> int:
        return 1

    @property
    def executor_device(self) -> str:
        return self.grant.device

    # -- steps

    def _commit_segment(self, segment: Segment) -> None:
        self._write(segment)
        self.lane.commit(asks=False)

    def _write(
        self, segment: Segment, wants: tuple[int, ...] | None = None, ticket: int | None = None
    ) -> None:
        """Appends a segment's messages to the outbox."""
        if self.tap is not None:
            self.tap(segment)
        self.lane.run(
            segment.captured,
            segment.number,
            segment.names(),
            segment.holes,
            segment.keep,
            segment.frees,
            segment.uploaded,
            wants,
            ticket,
        )
        self.segments += 1

    # -- sync

    def fetch(self, values: list[Value], describe: bool = False) -> list[Fetched]:
        """Blocks until the executor has sent the values, or their descriptions."""
        with self.recorder.lock:
            self._check()
            names = tuple(number for value in values for number in value.name)
            reply = self._ask(Fetch(next(self._tickets), names, describe))
            assert isinstance(reply, Values)
            pairs = zip(values, reply.values, strict=True)
            return [self._fetched(value, payload, self.lane) for value, payload in pairs]

    def _ask(self, question: Question, index: int = 0) -> Reply:
        """Sends the open segment and a question behind it; blocks until it is answered.

        index: of the device that it is about, if it is about one.

        Raises:
            ExecutorError: something that was recorded before has failed.
        """
        self.progress.done()
        waits = not self.lane.has(question.ticket) or self.lane.due()
        with uninterrupted:
            segment = self.recorder.end_segment()
            wants = _wanted(question, segment)
            if segment is not None:
                self._write(segment, wants, question.ticket if wants else None)
            if wants is None:
                self.lane.say(question)
            self.lane.commit(asks=waits)
            self.recorder.program_ends()
        self.link.transmit()
        reply = self.link.wait(question.ticket)
        self.lane.raise_failure()
        assert reply is not None
        self.lane.answered()
        return reply

    def _fetched(self, value: Value, payload: Payload, lane: Lane) -> Fetched:
        data: bytes | bytearray | None = payload.data
        if data is None and payload.bulk is not None:
            self._check_size(value, payload)
            data = bytearray(payload.nbytes)
            lane.link.round_trips += 1
            bulk, into = payload.bulk, memoryview(data)
            lane.link.persist(lambda: lane.transport.get_bulk(lane.grant, bulk, into))
        return Fetched(payload.dtype, payload.shape, payload.stride, data)

    def _check_size(self, value: Value, payload: Payload) -> None:
        """The executor may not make this process allocate more than the program asked for."""
        expected = value.meta.shape.numel() * value.meta.dtype.itemsize
        if payload.nbytes != expected:
            raise ProtocolError(
                f"executor {self.transport.address} offers {payload.nbytes} bytes for a value of {expected}"
            )

    def _check(self) -> None:
        if self.recorder.closed is not None:
            raise self.recorder.closed
        self.link.check_alive()

    def _living(self) -> str:
        found = living(self.grant.session)
        return f": {found}" if found else ""

    # -- uploads

    def put(self, dtype: str, shape: tuple[int, ...], data: bytes, index: int = 0) -> int:
        assert len(data) <= MAX_INLINE_NBYTES
        with self.recorder.lock:
            self._check()
            with uninterrupted:
                segment = self.recorder.number()
                self.lane.post(Put(segment, dtype, shape, data), len(data))
            self.link.transmit()
            return segment

    def store(self, dtype: str, shape: tuple[int, ...], data: memoryview, index: int = 0) -> int:
        with self.recorder.lock:
            self._check()
            digest = blake3(data).digest()
            self.link.persist(lambda: self.uploads.ensure(digest, data))
            with uninterrupted:
                segment = self.recorder.number()
                self.uploads.adopted(segment, digest)
                self.lane.post(Adopt(segment, dtype, shape, digest))
            self.link.transmit()
            return segment

    # -- generator and order

    def seed(self, seed: int, generator: int = 0, index: int = 0) -> None:
        self._in_order(lambda: self.lanes[index].post(Seed(seed, generator)))

    def save_rng(self, generator: int = 0, index: int = 0) -> int:
        with self.recorder.lock:
            segment = self.recorder.number()
            self._in_order(lambda: self.lanes[index].post(SaveRng(segment, generator)))
            return segment

    def load_rng(self, value: Value, generator: int = 0, index: int = 0) -> None:
        if value.home is not self.recorder:
            raise self.recorder.foreign(value)
        self._in_order(lambda: self.lanes[index].post(LoadRng(generator, value.name)))

    def default_dtype(self, name: str) -> None:
        self._in_order(lambda: self.lane.post(DefaultDtype(name)))

    def flag(self, setter: str, values: tuple[bool | int | str | None, ...]) -> None:
        self._in_order(lambda: self.lane.post(Flag(setter, values)))  # type: ignore[arg-type]

    def _in_order(self, post: Callable[[], None]) -> None:
        """Posts a message behind all rows recorded so far; it goes with the next segment."""
        with self.recorder.lock:
            self._check()
            self.recorder.cut()
            with uninterrupted:
                post()
            self.link.transmit()

    def barrier(self) -> None:
        with self.recorder.lock:
            self._check()
            self._ask(Barrier(next(self._tickets)))

    # -- what the executor can run

    def op_table(self) -> dict[str, str]:
        with self.recorder.lock:
            self._check()
            return self.lane.ops.table()

    def executor(self) -> str:
        return f"executor {self.transport.address} (torch {self.grant.torch})"

    def op_schemas(self) -> dict[str, str]:
        with self.recorder.lock:
            self._check()
            return self.lane.ops.schemas()

    def mark(self, settle: bool = False, index: int = 0) -> Moment:
        with self.recorder.lock:
            moment = Moment(next(self._tickets), index)
            self._moments[moment.ticket] = moment
            self._in_order(lambda: self.lanes[index].post(Mark(moment.ticket, settle)))
            return moment

    def passed(self, moment: Moment, wait: bool) -> bool:
        if moment.at_s is None:
            lane = self.lanes[moment.index]
            with self.recorder.lock:
                self._check()
                with uninterrupted:
                    lane.commit()
                lane.link.transmit()
                if wait:
                    lane.link.wait_until(lambda: moment.at_s is not None)
                else:
                    lane.link.poll()
                if moment.at_s is None:
                    lane.raise_failure()
        return moment.at_s is not None

    def _marked(self, marked: Marked) -> None:
        moment = self._moments.pop(marked.ticket, None)
        if moment is not None:
            moment.busy_s, moment.at_s = marked.busy_s, marked.at_s

    # -- what the executor says of itself

    def memory(self, reset_peak: bool = False, index: int = 0) -> Memory:
        with self.recorder.lock:
            self._check()
            self.recorder.cut()
            with uninterrupted:
                self._free_ended()
            reply = self._ask(MemoryQuery(next(self._tickets), reset_peak), index)
            assert isinstance(reply, Memory)
            return reply

    def facts(self, index: int = 0) -> DeviceFacts:
        with self.recorder.lock:
            if index not in self._facts:
                self._check()
                reply = self._ask(DeviceQuery(next(self._tickets)), index)
                assert isinstance(reply, DeviceFacts)
                self._facts[index] = reply
            return self._facts[index]

    def memory_nbytes(self, index: int = 0) -> int:
        return self.grant.memory_nbytes

    # -- life

    def _free_ended(self) -> None:
        frees = self.recorder.take_frees()
        self.uploads.freed(segment for segment, _ in frees)
        self.lane.free([(segment, code >> OUT_BITS, code & OUT_MASK) for segment, code in frees])

    def idle(self) -> None:
        """Called now and then: frees what died, takes in acks, renews the lease. Never waits for the program."""
        if not self.recorder.lock.acquire(blocking=False):
            return  # somebody is at work, which is sign of life enough
        try:
            if self.recorder.closed is not None:
                return
            self._free_ended()
            self.lane.commit()
            self.link.idle()
        finally:
            self.recorder.lock.release()

    def stats(self) -> Stats:
        with self.recorder.lock:
            return dataclasses.replace(
                self.lane.stats(),
                segments=self.segments,
                templates=self.recorder.templates,
                ops=self.recorder.ops,
                eager_frames=counters.eager_frames,
                whole_calls=counters.whole_calls,
                capture_route=counters.route,
            )

    def close(self, reason: Exception) -> None:
        """Ends the session here and on the executor; tensors that remain raise `reason`."""
        with self.recorder.lock:
            self.recorder.closed = reason
            self.link.close()
            self.progress.done()
            if os.getpid() == self.pid and self.link.lost is None:
                with suppress(RemoraError, OSError):  # else the lease ends it
                    self.transport.close_session(self.grant, 2.0)
            self.transport.close()


def _wanted(question: Question, segment: Segment | None) -> tuple[int, ...] | None:
    """(row, out) pairs, flat, if the question asks for nothing but bytes of the segment that goes with it."""
    if segment is None or not isinstance(question, Fetch) or question.describe:
        return None
    names = question.names
    if any(number != segment.number for number in names[::3]):
        return None
    return tuple(number for pair in zip(names[1::3], names[2::3], strict=True) for number in pair)
