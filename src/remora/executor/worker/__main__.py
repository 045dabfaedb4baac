"""The worker process: reads packets from the front, runs them on one device, answers."""

from __future__ import annotations

import argparse
import gc
import mmap
import os
import secrets
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import torch

from remora.errors import ProtocolError
from remora.executor.hop import (
    HEADER,
    MAX_PACKET_NBYTES,
    MISCONFIGURED_EXIT,
    BlobFile,
    BlobRelease,
    BulkFile,
    BulkRead,
    Kind,
    SessionTerms,
    Usage,
    WorkerReady,
    packet,
)
from remora.executor.worker.extensions import ExtensionError, load
from remora.executor.worker.failure import MemoryLimit
from remora.executor.worker.memory import Maps, device_memory_nbytes, limit_allocator
from remora.executor.worker.rng import Generators
from remora.executor.worker.session import Device, WorkerSession
from remora.ops.permission import op_table, table_digest
from remora.wire.codec import decode_to_executor, encode
from remora.wire.messages import Failed, ToClient, Values

PROGRESS = struct.Struct("<IQI")  # session, segment, row: what runs now, for the front to read if we die
USAGE_EVERY_S = 0.1


class Packets:
    """The packets that the front sends."""

    def __init__(self, hop: socket.socket) -> None:
        self.hop = hop
        self._buffer = bytearray()

    def next(self) -> tuple[Kind, int, bytes] | None:
        """Blocks; None when the front has closed the hop."""
        while True:
            if len(self._buffer) >= HEADER.size:
                nbytes, kind, number = HEADER.unpack_from(self._buffer)
                if nbytes > MAX_PACKET_NBYTES:
                    raise ProtocolError(f"packet of {nbytes} bytes on the hop")
                end = HEADER.size + nbytes
                if len(self._buffer) >= end:
                    body = bytes(memoryview(self._buffer)[HEADER.size : end])
                    del self._buffer[:end]
                    return Kind(kind), number, body
            received = self.hop.recv(1 << 18)
            if not received:
                return None
            self._buffer += received

    def quiet(self, timeout_s: float) -> bool:
        """Whether nothing came for so long."""
        return not self._buffer and not select.select([self.hop], [], [], timeout_s)[0]


class Worker:
    """The loop: one packet at a time, in order."""

    def __init__(self, hop: socket.socket, folder: Path, device: torch.device, memory_nbytes: int) -> None:
        self.hop = hop
        self.folder = folder
        self.limit_nbytes = memory_nbytes
        self.sessions: dict[int, WorkerSession] = {}
        self.progress = _progress_file(folder)
        self.usage_at = 0.0
        self.usage_due = False
        self.device = Device(
            device,
            Generators(device),
            self.progress[12:16].cast("I"),
            Maps(),
            self.spill,
            self.held,
            self.room_nbytes,
            self.release,
        )
        self._blobs_nbytes: int | None = None

    def serve(self) -> None:
        """Until the front closes the hop."""
        packets = Packets(self.hop)
        while True:
            if self.usage_due and packets.quiet(USAGE_EVERY_S):
                self.usage()
            packet = packets.next()
            if packet is None:
                return
            self.handle(*packet)

    def handle(self, kind: Kind, number: int, body: bytes) -> None:
        if kind is Kind.OPEN:
            terms = msgspec.msgpack.decode(body, type=SessionTerms)
            self.sessions[number] = WorkerSession(number, terms, self.device)
            return
        session = self.sessions.get(number)
        if session is None:  # it has ended meanwhile
            return
        if kind is Kind.STEP:
            self.step(session, body)
        elif kind is Kind.BLOB:
            session.allow_blob(msgspec.msgpack.decode(body, type=BlobFile))
            self._blobs_nbytes = None
        elif kind is Kind.BULK_READ:
            bulk = msgspec.msgpack.decode(body, type=BulkRead).bulk
            if session.bulks.pop(bulk, None) is not None:
                (self.folder / bulk).unlink(missing_ok=True)
        elif kind is Kind.CLOSE:
            del self.sessions[number]
            session.close()
            self._blobs_nbytes = None
            self.usage()

    def step(self, session: WorkerSession, body: bytes) -> None:
        replies: list[ToClient] = []
        try:
            messages = decode_to_executor(body)
        except ProtocolError as error:
            messages = ()
            self.reply(session, [session.refuse(error)])
        for message in messages:
            PROGRESS.pack_into(self.progress, 0, session.number, getattr(message, "segment", 0), 0)
            reply = session.handle(message)
            if isinstance(reply, (Values, Failed)):  # some of them together may be more than a frame holds
                self.reply(session, [*replies, reply])
                replies.clear()
            else:
                replies.append(reply)
        PROGRESS.pack_into(self.progress, 0, 0, 0, 0)
        self.reply(session, replies)
        self.usage_due = True
        if time.monotonic() - self.usage_at > USAGE_EVERY_S:
            self.usage()

    def reply(self, session: WorkerSession, replies: list[ToClient | None]) -> None:
        told = [reply for reply in replies if reply is not None]
        if told:
            self.hop.sendall(packet(Kind.REPLY, session.number, encode(told)))

    def usage(self) -> None:
        self.usage_at = time.monotonic()
        self.usage_due = False
        per_session = {
            number: (session.values.used_nbytes, session.device_s, session.segments)
            for number, session in self.sessions.items()
        }
        self.hop.sendall(packet(Kind.USAGE, 0, Usage(self.used_nbytes(), per_session)))

    def used_nbytes(self) -> int:
        """By values, less what the front counts as blobs."""
        return sum(session.values.used_nbytes for session in self.sessions.values())

    def room_nbytes(self) -> int:
        return self.limit_nbytes - self.used_nbytes() - self.blobs_nbytes()

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
            by_name[session.principal if ours else "other tenants"] += session.values.used_nbytes
        if blobs_nbytes := self.blobs_nbytes():
            by_name["stored weights"] = blobs_nbytes
        parts = [f"{name} {nbytes:,} bytes" for name, nbytes in sorted(by_name.items())]
        return f"Held by: {', '.join(parts) or 'nobody'}; limit {self.limit_nbytes:,} bytes (--memory)"


def _progress_file(folder: Path) -> memoryview:
    with open(folder / "progress", "wb+") as file:
        file.truncate(mmap.PAGESIZE)
        return memoryview(mmap.mmap(file.fileno(), mmap.PAGESIZE))


def _prefer_throughput() -> None:
    """Lets the program that feeds this worker finish what it is saying before the worker takes its core, and
    keeps the garbage collector, which has nothing to find in the loop, out of it."""
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def choose_device(text: str) -> torch.device:
    """`auto` is the first GPU if there is one."""
    if text == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="remora.executor.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", type=int, default=0)
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
    worker = Worker(hop, args.folder, device, memory_nbytes)
    ops = op_table()
    ready = WorkerReady(str(torch.__version__), str(device), memory_nbytes, table_digest(ops), ops)
    hop.sendall(packet(Kind.READY, 0, ready))
    _prefer_throughput()
    with torch.inference_mode():
        worker.serve()


if __name__ == "__main__":
    main()
