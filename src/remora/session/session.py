"""One session: what the device records goes out, what it asks for comes back."""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Callable

from remora.capture.recorder import CapturedTemplate, Recorder, Segment
from remora.capture.value import OUT_BITS, Value
from remora.config import ClientSettings
from remora.device.module import torch_version
from remora.device.sink import Fetched
from remora.errors import ExecutorError, RemoraError, UnsupportedOp
from remora.session.failures import error_from
from remora.session.link import Link, to_stderr
from remora.session.progress import UploadProgress
from remora.session.sites import Sites
from remora.session.stats import Stats
from remora.session.uploads import Uploads
from remora.transport.interface import Transport
from remora.wire.binding import encode_run
from remora.wire.limits import MAX_INLINE_NBYTES
from remora.wire.messages import (
    Adopt,
    Barrier,
    Define,
    Done,
    Fetch,
    Free,
    Grant,
    Payload,
    Put,
    Recover,
    RngState,
    Seed,
    Site,
    ToExecutor,
    Values,
)

OUTBOX_NBYTES = 256 << 10  # small uploads wait for company up to here
REMEMBERED_SEGMENTS = 20_000  # whose provenance is kept while they may still fail


class Session:
    """Implements device.sink.Sink. Every public method takes the recorder's lock."""

    def __init__(self, transport: Transport, grant: Grant, settings: ClientSettings) -> None:
        self.transport, self.grant = transport, grant
        self.link = Link(transport, grant, settings, to_stderr(transport.address))
        self.recorder = Recorder(grant.session, self._send_segment)
        self.progress = UploadProgress(transport.address)
        self.uploads = Uploads(transport, grant, self.progress.add)
        self.pid = os.getpid()
        self.segments = 0
        self.tap: Callable[[Segment], None] | None = None  # sees each segment before it is sent
        self._tickets = itertools.count(1)
        self._outbox: list[ToExecutor] = []
        self._outbox_nbytes = 0
        self._defined: dict[int, int] = {}  # captured index to the template's index on the wire
        self._sites = Sites()
        self._sent: OrderedDict[int, CapturedTemplate] = OrderedDict()
        self._wanted: tuple[tuple[int, ...], int] | None = None  # wants and ticket of the next segment
        self._missing_ops: frozenset[str] | None = None

    # -- steps

    def _send_segment(self, segment: Segment) -> None:
        if self.tap is not None:
            self.tap(segment)
        captured = segment.captured
        if captured.index not in self._defined:
            self._check_ops(captured)
            self._outbox.append(Define(len(self._defined), captured.template.body))
            self._defined[captured.index] = len(self._defined)
        template = self._defined[captured.index]
        names = [value.name for value in segment.slots]
        site, new = self._sites.choose(template, segment.number, names)
        if new:
            self._outbox.append(Site(site.index, template))
        wants, ticket = self._wanted or (None, None)
        self._outbox.append(
            encode_run(
                site.memory, segment.number, site.index, names, segment.holes, segment.keep, segment.frees, wants, ticket,
                segment.uploaded(),
            )
        )
        self._sent[segment.number] = captured
        if len(self._sent) > REMEMBERED_SEGMENTS:
            self._sent.popitem(last=False)
        self.segments += 1
        self._flush_outbox()

    def _flush_outbox(self) -> None:
        if self._outbox:
            messages, self._outbox, self._outbox_nbytes = self._outbox, [], 0
            self.progress.done()
            self.link.send(messages)

    def _check_ops(self, captured: CapturedTemplate) -> None:
        if self._missing_ops is None:
            self._missing_ops = self._compare_ops()
        for row, node in enumerate(captured.template.nodes):
            if node.op in self._missing_ops:
                raise UnsupportedOp(
                    f"{node.op} does not exist on executor {self.transport.address} "
                    f"(torch {self.grant.torch}); called at {captured.where[row]}"
                )

    def _compare_ops(self) -> frozenset[str]:
        """Ops that this torch has and the executor's does not; asked only if their tables differ."""
        from remora.ops.permission import op_table, table_digest

        if self.grant.torch == torch_version():
            return frozenset()  # the same release has the same ops
        ours = op_table()
        if table_digest(ours) == self.grant.ops_digest:
            return frozenset()
        theirs = self.transport.op_table(10.0)
        return frozenset(name for name in ours if name not in theirs)

    # -- sync

    def fetch(self, values: list[Value], describe: bool = False) -> list[Fetched]:
        """Blocks until the executor has sent the values, or their descriptions."""
        recorder = self.recorder
        with recorder.lock:
            self._check()
            ticket = next(self._tickets)
            names = [value.name for value in values]
            in_open = not describe and all(value.segment == recorder.segment for value in values)
            if in_open and recorder.step.rows:
                self._wanted = (tuple(n for _, row, out in names for n in (row, out)), ticket)
                try:
                    recorder.cut()
                finally:
                    self._wanted = None
            else:
                recorder.cut()
                self._outbox.append(Fetch(ticket, tuple(n for name in names for n in name), describe))
                self._flush_outbox()
            recorder.program_ends()
            reply = self._wait(ticket)
            assert isinstance(reply, Values)
            return [self._fetched(payload) for payload in reply.values]

    def _wait(self, ticket: int) -> Values | Done:
        reply = self.link.wait(ticket)
        self._raise_failure()
        last = max((s for s in self._sent), default=0)
        if isinstance(reply, Values) and last:
            self._sent.clear()  # replies come in order: everything sent before has run
        return reply

    def _raise_failure(self) -> None:
        failed = self.link.failed
        if failed is None:
            return
        error = error_from(failed, self._sent.get(failed.segment), self.transport.address)
        self.link.failed = None
        self._sent.clear()
        self.link.send([Recover(failed.failure)])
        raise error

    def _fetched(self, payload: Payload) -> Fetched:
        data: bytes | bytearray | None = payload.data
        if data is None and payload.bulk is not None:
            data = bytearray(payload.nbytes)
            self.link.round_trips += 1
            self.transport.get_bulk(self.grant, payload.bulk, memoryview(data))
        return Fetched(payload.dtype, payload.shape, payload.stride, data)

    def _check(self) -> None:
        if self.recorder.closed is not None:
            raise self.recorder.closed
        if self.link.lost is not None:
            raise self.link.lost

    # -- uploads

    def put(self, dtype: str, shape: tuple[int, ...], data: bytes) -> int:
        assert len(data) <= MAX_INLINE_NBYTES
        with self.recorder.lock:
            self._check()
            segment = self.recorder.number()
            self._outbox.append(Put(segment, dtype, shape, data))
            self._outbox_nbytes += len(data)
            if self._outbox_nbytes > OUTBOX_NBYTES:
                self._flush_outbox()
            return segment

    def store(self, dtype: str, shape: tuple[int, ...], data: memoryview) -> int:
        with self.recorder.lock:
            self._check()
            digest = self.uploads.ensure(data)
            segment = self.recorder.number()
            self._outbox.append(Adopt(segment, dtype, shape, digest))
            return segment

    # -- generator and order

    def seed(self, seed: int) -> None:
        with self.recorder.lock:
            self._check()
            self.recorder.cut()
            self._outbox.append(Seed(seed))

    def rng_state(self, state: bytes | None = None) -> bytes:
        with self.recorder.lock:
            self._check()
            self.recorder.cut()
            ticket = next(self._tickets)
            self._outbox.append(RngState(ticket, state))
            self._flush_outbox()
            reply = self._wait(ticket)
            assert isinstance(reply, Values)
            return bytes(reply.values[0].data or b"")

    def barrier(self) -> None:
        with self.recorder.lock:
            self._check()
            self.recorder.cut()
            self.recorder.program_ends()
            ticket = next(self._tickets)
            self._outbox.append(Barrier(ticket))
            self._flush_outbox()
            self._wait(ticket)

    # -- life

    def idle(self) -> None:
        """Called now and then while nothing happens: frees what died, takes in acks, renews the lease."""
        if not self.recorder.lock.acquire(blocking=False):
            return  # somebody is at work, which is sign of life enough
        try:
            if self.recorder.closed is not None or self.link.lost is not None:
                return
            frees = self.recorder.take_frees()
            if frees:
                names = tuple(n for s, c in frees for n in (s, c >> OUT_BITS, c & ((1 << OUT_BITS) - 1)))
                self._outbox.append(Free(names))
            self.link.poll()
            if self._outbox:
                self._flush_outbox()
            else:
                self.link.renew()
        except RemoraError:
            pass  # the next call of the program raises it again, where the program can see it
        finally:
            self.recorder.lock.release()

    def stats(self) -> Stats:
        with self.recorder.lock:
            return Stats(
                bytes_sent=self.link.bytes_sent + self.transport.bytes_sent,
                bytes_received=self.link.bytes_received + self.transport.bytes_received,
                round_trips=self.link.round_trips + self.uploads.round_trips,
                segments=self.segments,
                templates=self.recorder.templates,
                ops=self.recorder.ops,
                weights_bytes=self.uploads.sent_nbytes,
                reconnects=self.link.reconnects,
            )

    def close(self, reason: Exception) -> None:
        """Ends the session here and on the executor; tensors that remain raise `reason`."""
        with self.recorder.lock:
            self.recorder.closed = reason
            self.link.close()
            if os.getpid() == self.pid and self.link.lost is None:
                try:
                    self.transport.close_session(self.grant, 2.0)
                except (RemoraError, OSError):
                    pass  # the lease ends it
            self.transport.close()


__all__ = ["ExecutorError", "Session"]
