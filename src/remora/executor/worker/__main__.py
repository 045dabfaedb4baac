"""The worker process: reads packets from the front, runs them on one device, answers."""

from __future__ import annotations

import argparse
import mmap
import os
import secrets
import signal
import socket
import struct
import time
from pathlib import Path

import msgspec
import torch

from remora.errors import ProtocolError
from remora.executor.hop import (
    HEADER,
    MAX_PACKET_NBYTES,
    BlobFile,
    BulkFile,
    BulkRead,
    Kind,
    SessionTerms,
    Usage,
    WorkerReady,
    packet,
)
from remora.executor.worker.memory import device_memory_nbytes, limit_allocator
from remora.executor.worker.rng import Generators
from remora.executor.worker.session import Device, WorkerSession
from remora.ops.permission import op_table, table_digest
from remora.wire.codec import decode_to_executor, encode
from remora.wire.messages import Failed, ToClient

PROGRESS = struct.Struct("<IQI")  # session, segment, row: what runs now, for the front to read if we die
USAGE_EVERY_S = 0.1


class Worker:
    """The loop: one packet at a time, in order."""

    def __init__(self, hop: socket.socket, folder: Path, device: torch.device, memory_nbytes: int) -> None:
        self.hop = hop
        self.folder = folder
        self.sessions: dict[int, WorkerSession] = {}
        self.progress = _progress_file(folder)
        self.row = self.progress[12:16].cast("I")
        self.usage_at = 0.0
        self.device = Device(
            device,
            Generators(device),
            self.row,
            self.spill,
            self.held,
            memory_nbytes,
            lambda: sum(session.values.used_nbytes for session in self.sessions.values()),
        )

    def serve(self) -> None:
        """Until the front closes the hop."""
        reader = self.hop.makefile("rb", buffering=1 << 18)
        while True:
            header = reader.read(HEADER.size)
            if len(header) < HEADER.size:
                return
            nbytes, kind, number = HEADER.unpack(header)
            if nbytes > MAX_PACKET_NBYTES:
                raise ProtocolError(f"packet of {nbytes} bytes on the hop")
            self.handle(Kind(kind), number, reader.read(nbytes))

    def handle(self, kind: Kind, number: int, body: bytes) -> None:
        if kind is Kind.STEP:
            session = self.sessions.get(number)
            if session is not None:
                self.step(session, body)
        elif kind is Kind.OPEN:
            terms = msgspec.msgpack.decode(body, type=SessionTerms)
            self.sessions[number] = WorkerSession(number, terms, self.device)
        elif kind is Kind.BLOB:
            self.sessions[number].allow_blob(msgspec.msgpack.decode(body, type=BlobFile))
        elif kind is Kind.BULK_READ:
            (self.folder / msgspec.msgpack.decode(body, type=BulkRead).bulk).unlink(missing_ok=True)
        elif kind is Kind.CLOSE:
            session = self.sessions.pop(number, None)
            if session is not None:
                session.close()
            self.usage()

    def step(self, session: WorkerSession, body: bytes) -> None:
        replies: list[ToClient] = []
        try:
            messages = decode_to_executor(body)
        except ProtocolError as error:
            messages = ()
            session.failures += 1
            replies.append(Failed(session.failures, 0, 0, "protocol", str(error)))
        for message in messages:
            PROGRESS.pack_into(self.progress, 0, session.number, getattr(message, "segment", 0), 0)
            reply = session.handle(message)
            if reply is not None:
                replies.append(reply)
        PROGRESS.pack_into(self.progress, 0, 0, 0, 0)
        if replies:
            self.hop.sendall(packet(Kind.REPLY, session.number, encode(replies)))
        if time.monotonic() - self.usage_at > USAGE_EVERY_S:
            self.usage()

    def usage(self) -> None:
        self.usage_at = time.monotonic()
        per_session = {
            number: (session.values.used_nbytes, session.device_s, session.segments)
            for number, session in self.sessions.items()
        }
        self.hop.sendall(packet(Kind.USAGE, 0, Usage(self.device.used_nbytes(), per_session)))

    def spill(self, number: int, data: memoryview) -> str:
        """Writes a large value where the front can send it from."""
        bulk = f"bulk-{secrets.token_hex(8)}"
        path = self.folder / bulk
        path.write_bytes(data)
        self.hop.sendall(packet(Kind.BULK, number, BulkFile(bulk, str(path), data.nbytes)))
        return bulk

    def held(self) -> str:
        """Who holds how much of the device."""
        by_principal: dict[str, int] = {}
        for session in self.sessions.values():
            by_principal[session.principal] = by_principal.get(session.principal, 0) + session.values.used_nbytes
        parts = [f"{principal} {nbytes:,} bytes" for principal, nbytes in sorted(by_principal.items())]
        return f"Held by: {', '.join(parts) or 'nobody'}; limit {self.device.limit_nbytes:,} bytes"


def _progress_file(folder: Path) -> memoryview:
    with open(folder / "progress", "wb+") as file:
        file.truncate(mmap.PAGESIZE)
        return memoryview(mmap.mmap(file.fileno(), mmap.PAGESIZE))


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
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["REMORA_EXECUTOR"] = "1"
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    memory_nbytes = args.memory or device_memory_nbytes(device)
    limit_allocator(device, memory_nbytes)
    hop = socket.socket(fileno=args.fd)
    worker = Worker(hop, args.folder, device, memory_nbytes)
    ops = op_table()
    ready = WorkerReady(str(torch.__version__), str(device), memory_nbytes, table_digest(ops), ops)
    hop.sendall(packet(Kind.READY, 0, ready))
    with torch.inference_mode():
        worker.serve()


if __name__ == "__main__":
    main()
