"""Gives recorded clients to a worker of this PyTorch, and compares what it answers with what was answered then.

python tests/recording/replay.py FILE… : one line a file, and the differences; exit code 1 if a value is wrong.
So a client of one PyTorch meets an executor of another where the two cannot be installed together.
"""

from __future__ import annotations

import gzip
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from remora.executor.hop import HEADER, BlobFile, BulkFile, Kind
from remora.executor.worker.__main__ import Worker
from remora.ops.dtypes import BY_NAME
from remora.wire.codec import decode_to_client
from remora.wire.messages import Failed, Payload, Values

# Kernels of two versions may round differently; a result that is off by more than this is wrong.
RELATIVE, ABSOLUTE = 1e-4, 1e-5


@dataclass
class Report:
    """values: compared; equal: bit for bit; wrong: what is not even close, in words."""

    values: int = 0
    equal: int = 0
    wrong: list[str] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


@dataclass
class Answers:
    """What one session was told, bulk values in place."""

    messages: list[object] = field(default_factory=list)
    bulks: dict[str, bytes] = field(default_factory=dict)

    def take(self, kind: int, body: bytes, content: bytes) -> None:
        if kind == Kind.REPLY:
            self.messages += decode_to_client(body)
        elif kind == Kind.BULK:
            self.bulks[msgspec.msgpack.decode(body, type=BulkFile).bulk] = content

    def data(self, payload: Payload) -> bytes:
        return self.bulks[payload.bulk] if payload.bulk is not None else payload.data or b""


class Hop:
    """Takes what the worker says."""

    def __init__(self) -> None:
        self.sessions: dict[int, Answers] = {}

    def sendall(self, data: bytes) -> None:
        _, kind, session = HEADER.unpack_from(data)
        body = data[HEADER.size :]
        content = b""
        if kind == Kind.BULK:
            content = Path(msgspec.msgpack.decode(body, type=BulkFile).path).read_bytes()
        self.sessions.setdefault(session, Answers()).take(kind, body, content)


def records(path: Path) -> Iterator[tuple[int, int, bytes, bytes]]:
    with gzip.open(path) as file:
        while head := file.read(4):
            yield msgspec.msgpack.decode(
                file.read(struct.unpack("<I", head)[0]), type=tuple[int, int, bytes, bytes]
            )


def replay(path: Path) -> Report:
    """All sessions of a recording, in the order in which they came."""
    then: dict[int, Answers] = {}
    hop = Hop()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        worker = Worker(hop, Path(folder), torch.device("cpu"), 8 << 30)  # type: ignore[arg-type]
        for n, (kind, session, body, content) in enumerate(records(path)):
            if kind in (Kind.REPLY, Kind.BULK):
                then.setdefault(session, Answers()).take(kind, body, content)
                continue
            if kind == Kind.BLOB:
                file = Path(folder) / f"blob-{n}"
                file.write_bytes(content)
                blob = msgspec.msgpack.decode(body, type=BlobFile)
                body = msgspec.msgpack.encode(msgspec.structs.replace(blob, path=str(file)))
            worker.handle(Kind(kind), session, body)
    report = Report()
    for session, answers in then.items():
        _compare(report, session, answers, hop.sessions.get(session, Answers()))
    return report


def _compare(report: Report, session: int, then: Answers, now: Answers) -> None:
    if len(then.messages) != len(now.messages):
        report.wrong.append(
            f"session {session}: {len(now.messages)} answers, then {len(then.messages)}; "
            f"{[m for m in now.messages if isinstance(m, Failed)]}"
        )
    for n, (old, new) in enumerate(zip(then.messages, now.messages, strict=False)):
        where = f"session {session}, answer {n}"
        if isinstance(old, Failed) and isinstance(new, Failed):
            report.failures[f"{old.kind} {old.op}"] += 1
            if (old.kind, old.op, old.row) != (new.kind, new.op, new.row):
                report.wrong.append(f"{where}: {new}, then {old}")
        elif isinstance(old, Values) and isinstance(new, Values):
            for before, after in zip(old.values, new.values, strict=True):
                report.values += 1
                _compare_value(report, where, then, before, now, after)
        elif old != new:
            report.wrong.append(f"{where}: {new}, then {old}")


def _compare_value(
    report: Report, where: str, then: Answers, old: Payload, now: Answers, new: Payload
) -> None:
    if (old.dtype, old.shape, old.stride) != (new.dtype, new.shape, new.stride):
        report.wrong.append(f"{where}: {new.dtype}{new.shape}, then {old.dtype}{old.shape}")
        return
    before, after = then.data(old), now.data(new)
    if before == after:
        report.equal += 1
        return
    a, b = (torch.frombuffer(bytearray(data), dtype=BY_NAME[old.dtype]) for data in (before, after))
    if a.dtype.is_floating_point and torch.allclose(a, b, RELATIVE, ABSOLUTE, equal_nan=True):
        return
    report.wrong.append(f"{where}: {old.dtype}{list(old.shape)} differs by {(a - b).abs().max().item():g}")


def main() -> int:
    torch.set_num_threads(1)
    bad = 0
    for name in sys.argv[1:]:
        report = replay(Path(name))
        bad += len(report.wrong)
        failures = f", failures as then: {dict(report.failures)}" if report.failures else ""
        print(
            f"{name} on torch {torch.__version__}: {report.values} values, {report.equal} equal bit for bit, "
            f"{len(report.wrong)} wrong{failures}"
        )
        for line in report.wrong[:20]:
            print("  " + line[:600])
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
