"""The front's state and what happens to it: sessions, channels, stored bytes, the worker's packets."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from remora import __version__
from remora.executor.buffers import SPARE_S
from remora.executor.front.arrivals import Reception
from remora.executor.front.blobs import Blob, BlobTable, Memory
from remora.executor.front.channel import REPLACED, Channel
from remora.executor.front.keeper import Worker, Workers
from remora.executor.front.peers import PeerRule
from remora.executor.front.pushes import Counted, Pushes, PushWays
from remora.executor.front.refusal import Refuse
from remora.executor.front.sessions import Session, SessionTable
from remora.executor.front.tokens import Tokens, tenant_of
from remora.executor.front.uploads import Upload
from remora.executor.front.worker_link import Progress, WorkerLink, WorkerOptions
from remora.executor.hop import (
    BlobFile,
    BlobRelease,
    BulkFile,
    BulkRead,
    Fatal,
    Kind,
    Others,
    Outgoing,
    Returned,
    Sent,
    SessionTerms,
    Taken,
    Usage,
    WorkerReady,
)
from remora.wire.codec import decode_envelope, encode
from remora.wire.limits import (
    MAX_FRAME_NBYTES,
    MAX_UNACKED_FRAMES,
    MAX_UNACKED_NBYTES,
    OLDEST_PROTOCOL,
    PROTOCOL,
)
from remora.wire.messages import Grant, Lost, OpenSession, Peer, ToClient

log = logging.getLogger("remora.front")

UPLOAD_SILENCE_S = 120.0  # an upload of which nothing came for so long gives its memory back

_MAX_REPLY_NBYTES = MAX_FRAME_NBYTES - 64  # leaves room for the envelope


@dataclass(frozen=True)
class FrontOptions:
    worker: WorkerOptions
    tokens: Tokens
    lease_s: float = 900.0
    session_quota: int = 64
    peers: PeerRule = field(default_factory=PeerRule)  # which other executors values may be pushed to
    same_host: bool = True  # values for executors of this host, and from them, go through its memory


class Front:
    """Everything but the routes. `folder` is private and goes with the process."""

    def __init__(self, options: FrontOptions, folder: Path) -> None:
        self.options = options
        self.tokens = options.tokens
        self.folder = folder
        self.blob_folder = folder / "blobs"
        self.blob_folder.mkdir(mode=0o700)
        self.name = f"{socket.gethostname()[:48]}-{os.getpid()}"
        quota, n_tenants = options.session_quota, len(options.tokens.tenants)
        self.table = SessionTable(options.lease_s, quota, quota if n_tenants == 1 else max(1, quota // 2))
        self.blobs = BlobTable()
        self.uploads: dict[tuple[int, str], Upload] = {}
        self.channels: dict[int, Channel] = {}
        self.flowing: dict[int, asyncio.Event] = {}  # of sessions whose worker wants no steps for now
        self.listens_here = False  # to executors of this host
        self.pushes = Pushes(options.peers, self._push_ways(), self._tell, self._to_worker, self._count_push)
        self.opening: dict[
            tuple[int, str], asyncio.Future[str]
        ] = {}  # by session and push: why the worker cannot
        self.receptions: dict[tuple[int, str], Reception] = {}  # by session and push
        self.untaken: dict[int, set[str]] = defaultdict(set)  # pushes that came, by session
        self.took = asyncio.Event()  # one of them was taken
        self.counters: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.draining = False  # no new sessions
        self.started = asyncio.Event()  # a worker has been ready once
        self.workers_started = 0
        self.started_at = self.now()
        self.about: WorkerReady | None = None  # what the workers are; all are alike
        self.workers = Workers(
            folder,
            options.worker,
            n_tenants,
            self.take_packet,
            self.worker_started,
            self.worker_ended,
            lambda tenant: any(session.tenant == tenant for session in self.table.by_number.values()),
        )
        self.background: set[asyncio.Task[None]] = set()

    def now(self) -> float:
        return time.monotonic()

    # ---- the worker

    def worker_started(self, worker: Worker, ready: WorkerReady) -> None:
        self.about = ready
        self.workers_started += 1
        self.started.set()
        log.info("worker %d is ready on %s", worker.number, ready.device)

    def worker_ended(self, worker: Worker, how: str, progress: Progress) -> None:
        """Its tenant's sessions' state went with it; all learn which op ran, its owner what ran in detail."""
        log.error("worker %d ended: %s", worker.number, how)
        self.pushes.worker_ended(worker.tenant)
        worker.used_nbytes = 0
        owner, fatal = worker.link.fatal or (progress.session, None)
        if fatal:
            progress = Progress(owner, fatal.segment, fatal.row, fatal.op)
        for session in list(self.table.by_number.values()):
            if session.tenant != worker.tenant:
                continue
            if owner == session.number:
                self.end(session, _own_story(how, progress, fatal), progress, late=bool(fatal and fatal.late))
            elif owner:
                what = f"{progress.op} of another session" if progress.op else "another session's work"
                cause = fatal.message if fatal else how
                self.end(session, f"the worker died ({cause}) while it ran {what}")
            else:
                self.end(session, f"the worker died ({how})")
        self._share_usage()

    def take_packet(self, link: WorkerLink, kind: Kind, number: int, payload: bytes) -> None:
        worker = next((worker for worker in self.workers.all if worker.link is link), None)
        if worker is None:  # it has ended for us
            return
        if kind is Kind.USAGE:
            self._note_usage(worker, msgspec.msgpack.decode(payload, type=Usage))
            return
        if kind is Kind.RETURNED:
            worker.arrivals.returned(msgspec.msgpack.decode(payload, type=Returned).paths, self.now())
            return
        session = self.table.by_number.get(number)
        if session is not None and session.tenant != worker.tenant:
            raise ValueError(f"session {number} belongs to another worker")
        if kind is Kind.REPLY and session is not None:
            self._reply(session, payload)
        elif kind is Kind.RELEASE and session is not None:
            self._release(session, msgspec.msgpack.decode(payload, type=BlobRelease))
        elif kind is Kind.PUSH:
            out = msgspec.msgpack.decode(payload, type=Outgoing)
            if out.path and Path(out.path).parent != link.folder:
                raise ValueError(f"push {out.push} lies outside the worker's folder")
            if out.again and self.pushes.go_on(out):
                return
            if session is not None and not out.again:
                self.pushes.start(session, out)
            else:
                link.send(Kind.SENT, 0, Sent(out.push, reusable=True))
        elif session is not None and kind in (Kind.PEER, Kind.TAKEN, Kind.HOLD):
            self._take_small(session, kind, payload)
        elif kind is Kind.BULK:
            bulk = msgspec.msgpack.decode(payload, type=BulkFile)
            if Path(bulk.path).parent != link.folder:
                raise ValueError(f"bulk {bulk.bulk} lies outside the worker's folder")
            if session is None:
                Path(bulk.path).unlink(missing_ok=True)
            else:
                session.bulks[bulk.bulk] = bulk

    def _take_small(self, session: Session, kind: Kind, payload: bytes) -> None:
        if kind is Kind.PEER:
            self.pushes.name_peer(session, msgspec.msgpack.decode(payload, type=Peer))
        elif kind is Kind.TAKEN:
            taken = msgspec.msgpack.decode(payload, type=Taken)
            opening = self.opening.get((session.number, taken.push))
            if opening is not None and not opening.done():
                opening.set_result(taken.cannot)
            self.taken(session, taken.push)
        elif payload == b"\1":
            self.flowing[session.number] = asyncio.Event()
        else:
            self._let_flow(session)

    def _let_flow(self, session: Session) -> None:
        held = self.flowing.pop(session.number, None)
        if held is not None:
            held.set()

    def _reply(self, session: Session, payload: bytes) -> None:
        session.stepped_at = None
        if len(payload) > _MAX_REPLY_NBYTES:
            self.end(session, f"the worker answered {len(payload)} bytes at once; a frame holds fewer")
            return
        frame = session.stream.send(payload)
        stream = session.stream
        if stream.kept_frames > MAX_UNACKED_FRAMES or stream.kept_nbytes > MAX_UNACKED_NBYTES:
            self.end(session, "client did not read")
            return
        self.count(session, bytes_out=len(frame))
        channel = self.channels.get(session.number)
        if channel is not None:
            channel.push(frame)

    def _note_usage(self, worker: Worker, usage: Usage) -> None:
        worker.used_nbytes = usage.used_nbytes
        for number, used in usage.sessions.items():
            session = self.table.by_number.get(number)
            if session is not None:
                self.count(
                    session,
                    device_s=used.device_s - session.used.device_s,
                    segments=used.segments - session.used.segments,
                    inexact_segments=used.inexact_segments - session.used.inexact_segments,
                    inexact_refused=used.inexact_refused - session.used.inexact_refused,
                )
                session.used = used
        self.unlink(self.blobs.shrink(self.memory()))
        self._share_usage()

    def _share_usage(self) -> None:
        """The workers share one budget: each hears what the others use, when that has changed."""
        for worker in self.workers.of_tenant.values():
            others_nbytes = self.used_nbytes - worker.used_nbytes
            if self.on_cpu and worker.tenant is not None:
                others_nbytes += self.blobs.held_nbytes_of_others(worker.tenant)
            if others_nbytes != worker.told_nbytes:
                worker.told_nbytes = others_nbytes
                worker.link.send(Kind.OTHERS, 0, Others(others_nbytes))

    @property
    def on_cpu(self) -> bool:
        """Whether stored blobs lie in the memory that values lie in."""
        return self.about is None or self.about.device == "cpu"

    @property
    def used_nbytes(self) -> int:
        """By the values of all workers."""
        return sum(worker.used_nbytes for worker in self.workers.of_tenant.values())

    # ---- sessions

    async def open(self, principal: str, wants: OpenSession) -> Grant:
        """Raises Refuse: versions, quota, memory, draining."""
        if wants.oldest_protocol > PROTOCOL or wants.protocol < OLDEST_PROTOCOL:
            raise Refuse(
                "version",
                f"the client speaks protocols {wants.oldest_protocol} to {wants.protocol}, executor "
                f"{__version__} speaks {OLDEST_PROTOCOL} to {PROTOCOL}; bring both to one version of remora",
            )
        if self.draining:
            raise Refuse("busy", "the executor is shutting down")
        memory = self.memory()
        if not -(1 << 63) <= wants.seed < 1 << 64:
            raise Refuse("protocol", "the seed does not fit into 64 bits")
        if wants.memory_nbytes > memory.capacity_nbytes:
            raise Refuse(
                "memory",
                f"asked for {wants.memory_nbytes} bytes; the executor has {memory.capacity_nbytes} in all",
            )
        self.table.check(principal)
        ready = (await self.workers.take(tenant_of(principal), self.now())).ready
        assert ready is not None
        session = self.table.open(principal, self.now())
        self.send(
            Kind.OPEN, session, SessionTerms(principal, wants.seed, memory.capacity_nbytes, wants.exact)
        )
        return Grant(
            session=session.id,
            secret=session.secret,
            epoch=1,
            executor=self.name,
            protocol=PROTOCOL if wants.protocol >= PROTOCOL else OLDEST_PROTOCOL,
            torch=ready.torch,
            device=ready.device,
            ops_digest=ready.ops_digest,
            lease_s=session.lease_s,
            memory_nbytes=memory.capacity_nbytes,
            in_flight_frames=MAX_UNACKED_FRAMES,
            in_flight_nbytes=MAX_UNACKED_NBYTES,
            principal=principal,
            push_secret=session.push_secret,
            exact=wants.exact,
        )

    def end(self, session: Session, reason: str, ran: Progress | None = None, late: bool = False) -> None:
        """Ends a session for good, whoever wanted it; a connected client is told why, and what `ran` of it."""
        self.table.end(session, reason, self.now())
        channel = self.channels.pop(session.number, None)
        if channel is not None:
            lost = Lost(reason, ran.segment, ran.row, late) if ran else Lost(reason)
            channel.push(session.stream.send(encode((lost,))))
            channel.close(1000, reason)
        self.send(Kind.CLOSE, session)
        self._let_flow(session)
        self.pushes.end(session.number)
        self.untaken.pop(session.number, None)
        self.took.set()
        for (number, _), opening in self.opening.items():
            if number == session.number and not opening.done():
                opening.set_exception(Refuse("session", f"session {session.id} is over"))
        for number, digest in [key for key in self.uploads if key[0] == session.number]:
            self._drop_soon(number, digest)
        self.blobs.release(session.number, self.now())
        for bulk in session.bulks.values():
            Path(bulk.path).unlink(missing_ok=True)
        self.unlink(self.blobs.shrink(self.memory()))

    def _drop_soon(self, number: int, digest: str) -> None:
        task = asyncio.get_running_loop().create_task(self.drop_upload(number, digest))
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    def expire(self) -> None:
        """Ends what nobody needs any more; to be called often."""
        now = self.now()
        for session in self.table.expired(now):
            self.end(session, f"its lease of {session.lease_s:g} s ended without a sign of the client")
        for number, digest in [
            key for key, upload in self.uploads.items() if now - upload.heard_at > UPLOAD_SILENCE_S
        ]:
            self._drop_soon(number, digest)
        for session in self.table.by_number.values():
            for bulk in session.bulks_to_drop(None, now):
                self.drop_bulk(session, bulk)
        for worker in self.workers.of_tenant.values():
            worker.arrivals.buffers.drop_spare(now - SPARE_S)

    # ---- steps

    def attach(self, session: Session, epoch: int, channel: Channel) -> None:
        """Makes `channel` the session's connection; an older one is closed."""
        session.epoch = epoch
        older = self.channels.get(session.number)
        self.channels[session.number] = channel
        if older is not None:
            older.close(REPLACED, "replaced by a newer connection of the session")

    def detach(self, session: Session, channel: Channel) -> None:
        if self.channels.get(session.number) is channel:
            del self.channels[session.number]

    async def take(self, session: Session, frame: bytes) -> None:
        """Takes a client's frame, once. Raises ProtocolError."""
        session.renew(self.now())
        self.count(session, bytes_in=len(frame))
        envelope = decode_envelope(frame)
        if session.stream.receive(envelope):
            session.stepped_at = self.now()
            self.send(Kind.STEP, session, bytes(envelope.messages))
            held = self.flowing.get(session.number)
            if held is not None:
                await held.wait()
            worker = self.workers.of_tenant.get(session.tenant)
            if worker is not None and worker.link.full:
                await worker.link.writable()

    def send(self, kind: Kind, session: Session, payload: bytes | msgspec.Struct = b"") -> None:
        worker = self.workers.of_tenant.get(session.tenant)
        if worker is not None:
            worker.link.send(kind, session.number, payload)

    # ---- stored bytes

    def memory(self, tenant: str | None = None) -> Memory:
        volume = os.statvfs(self.folder)
        worker = self.workers.of_tenant.get(tenant) if tenant is not None else None
        return Memory(
            capacity_nbytes=self.options.worker.memory_nbytes
            or (self.about.memory_nbytes if self.about else 0),
            used_nbytes=self.used_nbytes,
            folder_free_nbytes=volume.f_bavail * volume.f_frsize,
            tenant_capacity_nbytes=self.options.worker.tenant_memory_nbytes,
            tenant_used_nbytes=worker.used_nbytes if worker is not None else 0,
            on_device=self.on_cpu,
        )

    def offer(self, session: Session, blob: Blob) -> None:
        """From now on the session may adopt the blob; the worker knows before the client is answered."""
        times = session.offers[blob.digest] = session.offers.get(blob.digest, 0) + 1
        self.send(Kind.BLOB, session, BlobFile(bytes.fromhex(blob.digest), blob.path, blob.nbytes, times))

    def _release(self, session: Session, release: BlobRelease) -> None:
        """No value is made of the blob any more; one offered again meanwhile stays."""
        digest = release.digest.hex()
        blob = self.blobs.get(session.tenant, digest)
        if blob is not None and session.offers.get(digest) == release.times:
            del session.offers[digest]
            self.blobs.let_go(session.number, blob, self.now())

    async def drop_upload(self, number: int, digest: str) -> None:
        upload = self.uploads.pop((number, digest), None)
        if upload is not None:
            await upload.close(keep_file=False)
            self.blobs.unreserve(number, digest)

    def drop_bulk(self, session: Session, bulk: BulkFile) -> None:
        Path(bulk.path).unlink(missing_ok=True)
        self.send(Kind.BULK_READ, session, BulkRead(bulk.bulk))

    # ---- values to and from other executors

    def taken(self, session: Session, push: str) -> None:
        """The worker counts an arrival's values now, or it did not come: nothing is set aside for it any more."""
        self.blobs.unreserve(session.number, f"push {push}")
        if session.number in self.untaken:
            self.untaken[session.number].discard(push)
        self.took.set()

    def _tell(self, session: Session, message: ToClient) -> None:
        if session.number in self.table.by_number:
            self._reply(session, encode((message,)))

    def _to_worker(self, session: Session, kind: Kind, content: msgspec.Struct) -> bool:
        """Also for a session that is over: what it has handed over is still brought. False: there is no worker."""
        worker = self.workers.of_tenant.get(session.tenant)
        if worker is not None:
            worker.link.send(kind, session.number, content)
        return worker is not None

    def _push_ways(self) -> PushWays:
        """Asked for a device when a push starts: a worker is ready by then."""
        here = self.folder.parent if self.options.same_host else None
        return PushWays(here, lambda: self.about.exports if self.about else "")

    def _count_push(self, session: Session, counted: Counted) -> None:
        ways = {f"{counted.way}_pushes": 1} if counted.way != "http" else {}
        missed = {"missed_pushes": 1} if counted.missed else {}
        self.count(session, pushes=1, peer_bytes_out=counted.nbytes, push_s=counted.seconds, **ways, **missed)

    def unlink(self, blobs: list[Blob]) -> None:
        for blob in blobs:
            with suppress(FileNotFoundError):
                os.unlink(blob.path)

    def count(self, session: Session, **amounts: float) -> None:
        counters = self.counters[session.principal]
        for name, amount in amounts.items():
            counters[name] += amount


def _own_story(how: str, progress: Progress, fatal: Fatal | None) -> str:
    """To the session whose work ended the worker; its client adds what the row is."""
    where = f"row {progress.row} of segment {progress.segment} of this session"
    if fatal is None:
        return f"the worker died ({how}) while it ran {where}"
    shapes = f" with {fatal.shapes}" if fatal.shapes else ""
    return f"its device failed ({fatal.message}){shapes} at {where}"
