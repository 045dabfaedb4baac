"""The worker, with everything that crosses the hop written to the file that REMORA_TEST_RECORD names.

A record is one MessagePack array: (kind, session, body, content), content being a file's bytes where the packet
names one. `replay.py` gives the same to a worker of another PyTorch.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import msgspec

from remora.executor.hop import HEADER, BlobFile, BulkFile, Kind
from remora.executor.worker import __main__ as worker

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.decode


class Recording:
    def __init__(self, path: str) -> None:
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115

    def add(self, kind: int, session: int, body: bytes) -> None:
        content = b""
        if kind in (Kind.BLOB, Kind.BULK):
            named = decode(body, type=BlobFile if kind == Kind.BLOB else BulkFile)
            content = Path(named.path).read_bytes()
        if kind in (Kind.OPEN, Kind.STEP, Kind.CLOSE, Kind.BLOB, Kind.REPLY, Kind.BULK):
            record = encode((int(kind), session, bytes(body), content))
            self.file.write(struct.pack("<I", len(record)) + record)


class Hop:
    """The socket, with what is sent written down."""

    def __init__(self, hop: Any, recording: Recording) -> None:
        self._hop, self._recording = hop, recording

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hop, name)

    def sendall(self, data: bytes) -> None:
        _, kind, session = HEADER.unpack_from(data)
        self._recording.add(kind, session, data[HEADER.size :])
        self._hop.sendall(data)


class Worker(worker.Worker):
    def __init__(self, hop: Any, *rest: Any) -> None:
        self.recording = Recording(os.environ["REMORA_TEST_RECORD"])
        super().__init__(Hop(hop, self.recording), *rest)

    def handle(self, kind: Kind, session: int, body: bytes) -> None:
        self.recording.add(kind, session, body)
        super().handle(kind, session, body)


if __name__ == "__main__":
    worker.Worker = Worker
    worker.main()
