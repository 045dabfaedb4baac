"""The file in which the front sees what this process does, and that it lives."""

from __future__ import annotations

import itertools
import mmap
import time
from pathlib import Path
from typing import TYPE_CHECKING

from remora.executor.hop import BEAT, BEAT_AT, BEAT_S, OPS, OPS_AT, PROGRESS, PROGRESS_NBYTES
from remora.wire.messages import Run, ToExecutor

if TYPE_CHECKING:
    from remora.executor.worker.session import WorkerSession

MAX_NAMED = 256  # templates whose op names are at hand


class Progress:
    """row: where a program writes which of its rows runs."""

    def __init__(self, folder: Path) -> None:
        self._file = _mapped(folder)
        self.row = self._file[12:16].cast("I")
        self._named: dict[tuple[int, int], bytes] = {}  # (session, template): its ops
        self._noted = b""

    def note(self, session: WorkerSession, message: ToExecutor) -> None:
        """Writes down what runs now, for the front to read if this process does not come back from it."""
        PROGRESS.pack_into(self._file, 0, session.number, getattr(message, "segment", 0), 0)
        ops = self._ops(session, message.site) if isinstance(message, Run) else b""
        if ops is not self._noted:
            OPS.pack_into(self._file, OPS_AT, len(ops))
            self._file[OPS_AT + OPS.size : OPS_AT + OPS.size + len(ops)] = ops
            self._noted = ops

    def idle(self) -> None:
        """Nothing runs now."""
        PROGRESS.pack_into(self._file, 0, 0, 0, 0)

    def forget(self, number: int) -> None:
        """The session has ended."""
        self._named = {key: ops for key, ops in self._named.items() if key[0] != number}

    def beat(self) -> None:
        """Tells the front that this process lives: ops run without the interpreter's lock, so a long one does not
        stop this thread; a process that is stopped, or swapped out for good, does."""
        for count in itertools.count(1):
            BEAT.pack_into(self._file, BEAT_AT, count)
            time.sleep(BEAT_S)

    def _ops(self, session: WorkerSession, site: int) -> bytes:
        if site >= len(session.sites):
            return b""
        key = session.number, session.sites[site].template
        ops = self._named.get(key)
        if ops is None:
            nodes = session.templates[key[1]].template.nodes
            ops = "\n".join(node.op for node in nodes).encode()[: PROGRESS_NBYTES - OPS_AT - OPS.size]
            if len(self._named) >= MAX_NAMED:
                del self._named[next(iter(self._named))]
            self._named[key] = ops
        return ops


def _mapped(folder: Path) -> memoryview:
    with open(folder / "progress", "wb+") as file:
        file.truncate(PROGRESS_NBYTES)
        return memoryview(mmap.mmap(file.fileno(), PROGRESS_NBYTES))
