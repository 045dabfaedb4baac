"""What the executor's PyTorch can run: asked for once, kept on disk under the digest that its Grant names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from remora.config import cache_dir
from remora.transport.interface import Transport
from remora.wire.messages import Grant

TIMEOUT_S = 30.0
MAX_FILES = 16
_Table = dict[str, str]


class ExecutorOps:
    """Tables of one executor, by op name."""

    def __init__(
        self, transport: Transport, grant: Grant, persist: Callable[[Callable[[], _Table]], _Table]
    ) -> None:
        self._transport, self._digest, self._persist = transport, grant.ops_digest, persist
        self.round_trips = 0
        self._tables: dict[str, _Table] = {}

    def table(self) -> _Table:
        """Schema digests; empty if the executor does not say."""
        return self._known("digests", self._transport.op_table)

    def schemas(self) -> _Table:
        return self._known("schemas", self._transport.op_schemas)

    def _known(self, what: str, ask: Callable[[float], _Table]) -> _Table:
        if what not in self._tables:
            self._tables[what] = self._read(what, ask)
        return self._tables[what]

    def _read(self, what: str, ask: Callable[[float], _Table]) -> _Table:
        if not self._digest:
            return {}
        path = cache_dir() / f"ops-{what}-{self._digest}.msgpack" if self._digest.isalnum() else None
        if path is not None:
            with suppress(OSError, msgspec.DecodeError):
                return msgspec.msgpack.decode(path.read_bytes(), type=_Table)
        self.round_trips += 1
        table = self._persist(lambda: ask(TIMEOUT_S))
        if path is not None:
            with suppress(OSError):  # it costs a round trip in the next process
                _write(path, msgspec.msgpack.encode(table))
        return table


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all; the oldest files of the kind go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="ops-writing-")
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    files = sorted(path.parent.glob("ops-*.msgpack"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in files[MAX_FILES:]:
        old.unlink(missing_ok=True)
