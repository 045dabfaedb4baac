"""A worker's session inside this process: an Endpoint for the in-process transport, without front or socket."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from remora.executor.buffers import Buffers
from remora.executor.hop import BlobFile, SessionTerms
from remora.executor.worker.device import Device
from remora.executor.worker.memory import Maps
from remora.executor.worker.outbox import Outbox
from remora.executor.worker.rng import Generators
from remora.executor.worker.session import WorkerSession
from remora.transport.stream import Stream
from remora.wire.codec import decode_envelope, decode_to_executor, encode
from remora.wire.messages import Grant, OpenSession, Status

LIMIT_NBYTES = 64 << 20
CPU = torch.device("cpu")


def worker_device(
    limit_nbytes: int = LIMIT_NBYTES, device: torch.device = CPU
) -> tuple[Device, list[WorkerSession], dict[str, bytes]]:
    """A device, the sessions that count against its limit, and the bulk values that were spilled."""
    sessions: list[WorkerSession] = []
    bulks: dict[str, bytes] = {}

    def spill(session: WorkerSession, data: memoryview) -> str:
        name = secrets.token_hex(8)
        bulks[name] = bytes(data)
        return name

    return (
        Device(
            device,
            Generators(device),
            memoryview(bytearray(4)).cast("I"),
            Maps(),
            spill,
            lambda principal: f"Held by: {principal}",
            lambda: limit_nbytes - sum(s.used_nbytes for s in sessions),
            lambda number, digest, times: None,
            Outbox(Buffers(Path(tempfile.gettempdir()), "test-push"), limit_nbytes, lambda *packet: None),
        ),
        sessions,
        bulks,
    )


@contextmanager
def worker_session() -> Iterator[WorkerSession]:
    """One session on a device of its own, in the worker's mode."""
    device, sessions, _ = worker_device()
    session = WorkerSession(1, SessionTerms("t/u", 0, LIMIT_NBYTES), device)
    sessions.append(session)
    with torch.inference_mode():
        yield session
    session.close()


class WorkerEndpoint:
    """One session; `ran` is the number of segments that it has run."""

    address = "inprocess://worker"

    def __init__(self, folder: Path) -> None:
        self.device, self.sessions, self.bulks = worker_device()
        self.folder = folder
        self.stream = Stream()
        self.blobs = _Blobs(self)
        self.port: _Port | None = None
        self.session: WorkerSession

    def open(self, wants: OpenSession) -> Grant:
        self.session = WorkerSession(1, SessionTerms("t/u", wants.seed, LIMIT_NBYTES), self.device)
        self.sessions.append(self.session)
        return Grant(
            "s1", "secret", 1, "here", 1, wants.torch, "cpu", "", 900.0, LIMIT_NBYTES, 64, 1 << 24, "t/u"
        )

    def close(self, session: str) -> None:
        self.session.close()

    def attach(self, session: str, epoch: int, received: int, reply: Any, cut: Any) -> _Port:
        if self.port is not None:
            self.port.cut("replaced")
        self.port = port = _Port(self, reply, cut)
        port.received = self.stream.received
        for frame in self.stream.resume(received):
            reply(frame)
        return port

    def step(self, frame: bytes) -> None:
        envelope = decode_envelope(frame)
        if not self.stream.receive(envelope):
            return
        replies = []
        with torch.inference_mode():
            for message in decode_to_executor(bytes(envelope.messages)):
                replies += [reply for reply in self.session.take(message) if reply is not None]
        out = self.stream.send(encode(replies)) if replies else self.stream.ack_frame()
        if self.port is not None:
            self.port.reply(out)

    def bulk(self, session: str, bulk: str) -> bytes:
        return self.bulks[bulk]

    def abandon(self, session: str, names: tuple[int, ...], reason: str) -> None:
        raise NotImplementedError("one executor receives nothing")

    def ops(self) -> dict[str, str]:
        return {}

    def op_schemas(self) -> dict[str, str]:
        return {}

    def status(self) -> Status:
        raise NotImplementedError


class _Port:
    def __init__(self, endpoint: WorkerEndpoint, reply: Any, cut: Any) -> None:
        self.endpoint, self.reply, self.cut = endpoint, reply, cut
        self.received = 0

    def step(self, frame: bytes) -> None:
        self.endpoint.step(frame)

    def detach(self) -> None:
        if self.endpoint.port is self:
            self.endpoint.port = None


class _Blobs(dict):
    """Stored bytes; what is put, or read for a proof, is offered to the session at once."""

    def __init__(self, endpoint: WorkerEndpoint) -> None:
        super().__init__()
        self.endpoint = endpoint

    def __setitem__(self, digest: str, data: Any) -> None:
        super().__setitem__(digest, data)
        (self.endpoint.folder / digest).write_bytes(data)
        self._offer(digest, len(data))

    def __getitem__(self, digest: str) -> Any:
        data = super().__getitem__(digest)
        self._offer(digest, len(data))
        return data

    def _offer(self, digest: str, nbytes: int) -> None:
        path = self.endpoint.folder / digest
        self.endpoint.session.allow_blob(BlobFile(bytes.fromhex(digest), str(path), nbytes, 1))
