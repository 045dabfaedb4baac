"""The worker process: reads packets from the front, runs them on one device, answers."""

from __future__ import annotations

import argparse
import functools
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from remora.errors import ProtocolError
from remora.executor.buffers import SPARE_S, Buffers
from remora.executor.hop import (
    MISCONFIGURED_EXIT,
    Arrival,
    BlobFile,
    BlobRelease,
    BulkFile,
    BulkRead,
    Fatal,
    Kind,
    Near,
    Others,
    Returned,
    Sent,
    SessionTerms,
    Spill,
    Usage,
    packet,
)
from remora.executor.worker import exports
from remora.executor.worker.device import Device
from remora.executor.worker.extensions import ExtensionError, load
from remora.executor.worker.failure import DeviceBroken, MemoryLimit
from remora.executor.worker.memory import Maps, device_memory_nbytes, limit_allocator
from remora.executor.worker.outbox import Outbox
from remora.executor.worker.packets import Packets
from remora.executor.worker.process import choose_device, prefer_throughput, ready
from remora.executor.worker.progress import Progress
from remora.executor.worker.rng import Generators
from remora.executor.worker.session import WorkerSession
from remora.wire.codec import decode_to_executor, encode
from remora.wire.messages import Abandon, Define, Failed, ToClient, ToExecutor, Values

USAGE_EVERY_S = 0.1
MAX_TENANT_TEMPLATES_NBYTES = 64 << 20  # encoded; a session alone has less (worker/session.py)
BROKEN = 70  # exit code after a fatal error of the device
MARKS_EVERY_S = 0.0005
MAX_HELD_NBYTES = 8 << 20  # of steps that wait here for values; beyond it, the front keeps them


@dataclass
class Held:
    """Steps of a session that waits for values. messages: the rest of the step that said so. full: the front knows."""

    messages: tuple[ToExecutor, ...]
    bodies: deque[bytes] = field(default_factory=deque)
    nbytes: int = 0
    full: bool = False


class Worker:
    """The loop: one packet at a time, in order."""

    def __init__(
        self,
        hop: socket.socket,
        folder: Path,
        device: torch.device,
        memory_nbytes: int,
        tenant_nbytes: int = 0,
    ) -> None:
        self.hop = hop
        self.folder = folder
        self.limit_nbytes = memory_nbytes
        self.tenant_nbytes = tenant_nbytes or memory_nbytes  # of it, what this worker's tenant may hold
        self.sessions: dict[int, WorkerSession] = {}
        self.progress = Progress(folder)
        self.others_nbytes = 0  # what the workers of other tenants use of the same memory
        self.usage_at = 0.0
        self.usage_due = False
        self.device = Device(
            device,
            Generators(device),
            self.progress.row,
            Maps(),
            self.spill,
            self.held,
            self.room_nbytes,
            self.release,
            Outbox(
                Buffers(folder, "push", memory_nbytes // 4), memory_nbytes, self.tell, self._exports(device)
            ),
        )
        self._held: dict[int, Held] = {}  # sessions whose stream stands still
        self._blobs_nbytes: int | None = None

    def _exports(self, device: torch.device) -> exports.Exports | None:
        memory = exports.memory_of(device)
        return None if memory is None else exports.Exports(memory, self.limit_nbytes // 4, self.room_nbytes)

    def serve(self) -> None:
        """Until the front closes the hop."""
        packets = Packets(self.hop)
        while True:
            while self.run_ahead(packets):
                pass
            while self.device.marks and packets.quiet(MARKS_EVERY_S):
                self.tell_marks()
            if self.usage_due and packets.quiet(USAGE_EVERY_S):
                self.usage()
            while self.device.outbox.kept_nbytes and packets.quiet(SPARE_S):
                self.device.outbox.drop_spare()
            packet = packets.next()
            if packet is None:
                return
            self.handle(*packet)

    def handle(self, kind: Kind, number: int, body: bytes) -> None:
        if kind is Kind.OPEN:
            terms = msgspec.msgpack.decode(body, type=SessionTerms)
            self.sessions[number] = WorkerSession(number, terms, self.device)
            return
        if kind is Kind.OTHERS:
            self.others_nbytes = msgspec.msgpack.decode(body, type=Others).nbytes
            self.give_back()
            return
        if kind is Kind.SENT:
            sent = msgspec.msgpack.decode(body, type=Sent)
            self.device.outbox.sent(sent.push, sent.reusable)
            return
        if kind is Kind.SPILL:
            spill = msgspec.msgpack.decode(body, type=Spill)
            self.device.outbox.spill(spill.push, spill.reusable)
            return
        session = self.sessions.get(number)
        if session is None:  # it has ended meanwhile
            if kind is Kind.ARRIVAL:
                arrival = msgspec.msgpack.decode(body, type=Arrival)
                self.device.returned.extend(path for path in arrival.paths if path)
                self.return_buffers()
            return
        if kind is Kind.STEP:
            held = self._held.get(number)
            if held is not None:
                self.hold(number, held, body)
            else:
                self.step(session, body)
        elif kind is Kind.ARRIVAL:
            self.arrive(session, msgspec.msgpack.decode(body, type=Arrival))
        elif kind is Kind.ABANDON:
            session.transfers.abandon(msgspec.msgpack.decode(body, type=Abandon))
            self.go_on(session)
        elif kind is Kind.NEAR:
            near = msgspec.msgpack.decode(body, type=Near)
            session.transfers.near(near.peer, near.near)
        elif kind is Kind.BLOB:
            session.allow_blob(msgspec.msgpack.decode(body, type=BlobFile))
            self._blobs_nbytes = None
        elif kind is Kind.BULK_READ:
            bulk = msgspec.msgpack.decode(body, type=BulkRead).bulk
            if session.bulks.pop(bulk, None) is not None:
                (self.folder / bulk).unlink(missing_ok=True)
        elif kind is Kind.CLOSE:
            del self.sessions[number]
            self._held.pop(number, None)
            self.progress.forget(number)
            session.close()
            self._blobs_nbytes = None
            self.return_buffers()
            self.usage()

    def step(self, session: WorkerSession, body: bytes) -> None:
        try:
            messages = decode_to_executor(body)
        except ProtocolError as error:
            messages = ()
            self.reply(session, [session.refuse(error)])
        self.act(session, messages)

    def act(self, session: WorkerSession, messages: tuple[ToExecutor, ...]) -> None:
        """Acts on messages, as far as the session has not to wait."""
        replies: list[ToClient | None] = []
        note = functools.partial(self.progress.note, session)
        for place, message in enumerate(messages, 1):
            refused = self.within_quota(session, message)
            try:
                for reply in session.take(message, note) if refused is None else (refused,):
                    if isinstance(reply, (Values, Failed)):  # some together may be more than a frame holds
                        self.reply(session, [*replies, reply])
                        replies.clear()
                    else:
                        replies.append(reply)
            except DeviceBroken as broken:
                self.last_words(session, broken)
                raise SystemExit(BROKEN) from broken
            if session.transfers.waiting.missing:
                self._held[session.number] = Held(messages[place:])
                break
        self.progress.idle()
        self.reply(session, replies)
        self.tell_marks()
        self.return_buffers()
        self.usage_due = True
        if time.monotonic() - self.usage_at > USAGE_EVERY_S:
            self.usage()

    def run_ahead(self, packets: Packets) -> bool:
        """Runs something that a session is going to ask for, if nothing else is to be done; False: there is none."""
        for session in list(self.sessions.values()):
            ahead = session.ahead
            if ahead is None:
                continue
            try:
                replies = ahead.answers(wait=False)
                coming = ahead.coming()
                if not packets.quiet(0):
                    self.reply(session, replies)
                    return False
                if coming is not None:
                    self.reply(session, replies)
                    self.progress.note(session, coming)
                    replies = ahead.go(coming)
                    self.progress.idle()
                    self.usage_due = True
                else:
                    replies = replies or ahead.answers()
                    if not replies:
                        continue
            except DeviceBroken as broken:
                self.last_words(session, broken)
                raise SystemExit(BROKEN) from broken
            self.reply(session, replies)
            return True
        return False

    # ---- values from other executors

    def arrive(self, session: WorkerSession, arrival: Arrival) -> None:
        try:
            session.transfers.arrive(arrival)
        except Exception as error:
            try:
                refused = session.refuse(error)
            except DeviceBroken as broken:
                self.last_words(session, broken)
                raise SystemExit(BROKEN) from broken
            self.reply(session, [refused])
        self.return_buffers()
        self.usage_due = True
        self.go_on(session)

    def hold(self, number: int, held: Held, body: bytes) -> None:
        """Keeps a step for later; other sessions go on meanwhile."""
        held.bodies.append(body)
        held.nbytes += len(body)
        if held.nbytes > MAX_HELD_NBYTES and not held.full:
            held.full = True
            self.hop.sendall(packet(Kind.HOLD, number, b"\1"))

    def go_on(self, session: WorkerSession) -> None:
        """Takes up the steps that waited, if nothing is missing any more."""
        number = session.number
        held = self._held.get(number)
        if held is None or session.transfers.waiting.held:
            return
        del self._held[number]
        self.act(session, held.messages)
        while held.bodies and number not in self._held:
            self.step(session, held.bodies.popleft())
        again = self._held.get(number)
        if again is not None:  # it waits once more
            again.bodies, again.nbytes = held.bodies, sum(map(len, held.bodies))
            again.full = held.full and again.nbytes > MAX_HELD_NBYTES
        if held.full and not (again and again.full):
            self.hop.sendall(packet(Kind.HOLD, number, b"\0"))

    def tell(self, kind: Kind, number: int, content: msgspec.Struct) -> None:
        self.hop.sendall(packet(kind, number, content))

    def return_buffers(self) -> None:
        """Tells the front which buffers of arrivals no value lies in any more."""
        if self.device.returned:
            paths = tuple(self.device.returned)
            self.device.returned.clear()
            self.hop.sendall(packet(Kind.RETURNED, 0, Returned(paths)))

    def within_quota(self, session: WorkerSession, message: ToExecutor) -> Failed | None:
        """A refusal if the tenant's sessions together would hold too many templates, which fill host memory."""
        if not isinstance(message, Define):
            return None
        held_nbytes = sum(other.templates_nbytes for other in self.sessions.values())
        if held_nbytes + len(message.body) <= MAX_TENANT_TEMPLATES_NBYTES:
            return None
        limit = f"{MAX_TENANT_TEMPLATES_NBYTES:,} bytes, which is the limit"
        return session.refuse(MemoryLimit(f"the templates of the tenant's sessions take {limit}"))

    def last_words(self, session: WorkerSession, broken: DeviceBroken) -> None:
        text = str(broken).strip().partition("\n")[0]
        late = self.device.device.type == "cuda"
        words = Fatal(broken.segment, broken.row, broken.op, broken.shapes, text, late)
        self.hop.sendall(packet(Kind.FATAL, session.number, words))

    def reply(self, session: WorkerSession, replies: Sequence[ToClient | None]) -> None:
        told = [reply for reply in replies if reply is not None]
        if told:
            self.hop.sendall(packet(Kind.REPLY, session.number, encode(told)))

    def tell_marks(self) -> None:
        for session, marked in self.device.marks.passed():
            if self.sessions.get(session.number) is session:
                self.reply(session, [marked])

    def usage(self) -> None:
        self.usage_at = time.monotonic()
        self.usage_due = False
        per_session = {number: session.usage for number, session in self.sessions.items()}
        self.hop.sendall(packet(Kind.USAGE, 0, Usage(self.used_nbytes(), per_session)))

    def used_nbytes(self) -> int:
        """By values and graphs, less what the front counts as blobs."""
        return sum(session.used_nbytes for session in self.sessions.values())

    def room_nbytes(self) -> int:
        left_nbytes = min(self.limit_nbytes - self.others_nbytes, self.tenant_nbytes)
        return left_nbytes - self.used_nbytes() - self.blobs_nbytes() - self.device.outbox.device_nbytes

    def give_back(self) -> None:
        """What PyTorch keeps of a GPU's memory for later, if the others need it now."""
        device = self.device.device
        if (
            device.type == "cuda"
            and torch.cuda.memory_reserved(device) + self.others_nbytes > self.limit_nbytes
        ):
            torch.cuda.empty_cache()

    def blobs_nbytes(self) -> int:
        """Of the blobs that sessions hold, each once, if they lie in the device's own memory."""
        if self.device.device.type != "cpu":
            return 0
        if self._blobs_nbytes is None:
            offered = [blob for session in self.sessions.values() for blob in session.blobs.offered.values()]
            self._blobs_nbytes = sum({blob.path: blob.nbytes for blob in offered}.values())
        return self._blobs_nbytes

    def release(self, number: int, digest: bytes, times: int) -> None:
        self._blobs_nbytes = None
        self.hop.sendall(packet(Kind.RELEASE, number, BlobRelease(digest, times)))

    def spill(self, session: WorkerSession, data: memoryview) -> str:
        """Writes a large value where the front can send it from."""
        waiting_nbytes = sum(sum(other.bulks.values()) for other in self.sessions.values())
        waiting_nbytes += self.device.outbox.nbytes
        if waiting_nbytes + data.nbytes > self.limit_nbytes:
            raise MemoryLimit(f"asked for {data.nbytes:,} bytes; {waiting_nbytes:,} wait to be read already")
        bulk = f"bulk-{secrets.token_hex(8)}"
        path = self.folder / bulk
        try:
            path.write_bytes(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        session.bulks[bulk] = data.nbytes
        self.hop.sendall(packet(Kind.BULK, session.number, BulkFile(bulk, str(path), data.nbytes)))
        return bulk

    def held(self, principal: str) -> str:
        """Who holds how much: of one's own tenant by name, of the others in one sum."""
        tenant = principal.partition("/")[0]
        by_name: Counter[str] = Counter()
        for session in self.sessions.values():
            ours = session.principal.partition("/")[0] == tenant
            by_name[session.principal if ours else "other tenants"] += session.used_nbytes
        if self.others_nbytes:
            by_name["other tenants"] = self.others_nbytes
        if blobs_nbytes := self.blobs_nbytes():
            by_name["stored weights"] = blobs_nbytes
        parts = [f"{name} {nbytes:,} bytes" for name, nbytes in sorted(by_name.items())]
        return f"Held by: {', '.join(parts) or 'nobody'}; {self._limits()}"

    def _limits(self) -> str:
        text = f"limit {self.limit_nbytes:,} bytes (--memory)"
        if self.tenant_nbytes == self.limit_nbytes:
            return text
        return f"{text}, of them {self.tenant_nbytes:,} for one tenant (--tenant-memory)"


def main() -> None:
    parser = argparse.ArgumentParser(prog="remora.executor.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--tenant-memory", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--ops", action="append", default=[])
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["REMORA_EXECUTOR"] = "1"
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    memory_nbytes = args.memory or device_memory_nbytes(device)
    limit_allocator(device, memory_nbytes)
    try:
        load(args.ops)
    except ExtensionError as error:
        print(f"remora serve: {error}", file=sys.stderr)
        sys.exit(MISCONFIGURED_EXIT)
    hop = socket.socket(fileno=args.fd)
    worker = Worker(hop, args.folder, device, memory_nbytes, args.tenant_memory)
    threading.Thread(target=worker.progress.beat, name="remora-beat", daemon=True).start()
    lent = worker.device.outbox.exports
    hop.sendall(packet(Kind.READY, 0, ready(device, memory_nbytes, lent.memory.kind if lent else "")))
    prefer_throughput()
    with torch.inference_mode():
        worker.serve()


if __name__ == "__main__":
    main()
