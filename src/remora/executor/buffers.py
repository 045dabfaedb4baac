"""Shared memory that one process fills and another maps, used again: a page that is new costs as much as the network.

One set of buffers serves one tenant's worker only, so nothing of another tenant can lie in one.
"""

from __future__ import annotations

import mmap
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

MAX_SPARE_NBYTES = 256 << 20
SPARE_S = 5.0  # how long one is kept
_FIT = 8  # a spare one is taken if it is larger by at most 1/8


@dataclass(eq=False)
class Buffer:
    """A file that is mapped here; all its pages are there, so that no write can fail."""

    path: str
    nbytes: int
    mapped: mmap.mmap
    spare_since: float = 0.0

    def view(self, nbytes: int) -> memoryview:
        return memoryview(self.mapped)[:nbytes]


class Buffers:
    """Buffers in `folder`. Everything but `create` takes no time.

    Args:
        spare_nbytes: what may be kept for the next one.
    """

    def __init__(self, folder: Path, prefix: str, spare_nbytes: int = MAX_SPARE_NBYTES) -> None:
        self._folder, self._prefix = folder, prefix
        self._limit_nbytes = min(spare_nbytes, MAX_SPARE_NBYTES)
        self._spare: list[Buffer] = []

    @property
    def spare_nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._spare)

    def take(self, nbytes: int) -> Buffer | None:
        """A spare one that holds `nbytes`, and not many more."""
        fitting = [b for b in self._spare if nbytes <= b.nbytes <= nbytes + nbytes // _FIT + mmap.PAGESIZE]
        if not fitting:
            return None
        best = min(fitting, key=lambda buffer: buffer.nbytes)
        self._spare.remove(best)
        return best

    def create(self, nbytes: int) -> Buffer:
        """A new one: 0.3 ms a MB. May be called on a thread.

        Raises:
            OSError: there is no memory.
        """
        whole = max(1, -(-nbytes // mmap.PAGESIZE)) * mmap.PAGESIZE
        path = self._folder / f"{self._prefix}-{secrets.token_hex(8)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(fd, 0, whole)  # else a full volume would be a SIGBUS at the first write
            return Buffer(str(path), whole, mmap.mmap(fd, whole))
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(fd)

    def give_back(self, buffer: Buffer, now: float) -> None:
        """Nobody reads or writes it any more."""
        buffer.spare_since = now
        self._spare.append(buffer)
        while self.spare_nbytes > self._limit_nbytes:
            self.drop(self._spare.pop(0))

    def drop(self, buffer: Buffer) -> None:
        """Instead of `give_back`, where somebody may still read it."""
        Path(buffer.path).unlink(missing_ok=True)

    def drop_spare(self, before: float = float("inf")) -> None:
        """Frees the memory of those that have been spare since `before`."""
        old = [buffer for buffer in self._spare if buffer.spare_since < before]
        self._spare = [buffer for buffer in self._spare if buffer.spare_since >= before]
        for buffer in old:
            self.drop(buffer)
