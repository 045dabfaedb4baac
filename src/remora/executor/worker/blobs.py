"""Which stored blobs a session may make values of, and when it needs one no longer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from remora.errors import ProtocolError
from remora.executor.hop import BlobFile
from remora.wire.binding import Name


@dataclass
class Offered:
    """times: how often the front has offered it. due: an offer was not yet taken. values: made of it, living."""

    path: str
    nbytes: int
    times: int = 0
    due: bool = False
    values: int = 0


class Blobs:
    """The blobs of one session. One that was offered, taken and whose values have all ended is released."""

    def __init__(self) -> None:
        self.offered: dict[bytes, Offered] = {}
        self.values: dict[Name, bytes] = {}

    def offer(self, blob: BlobFile) -> None:
        """Until the next value is made of it, the blob stays."""
        entry = self.offered.setdefault(blob.digest, Offered(blob.path, blob.nbytes))
        entry.path, entry.times, entry.due = blob.path, blob.times, True

    def find(self, digest: bytes) -> Offered:
        """Raises ProtocolError."""
        entry = self.offered.get(digest)
        if entry is None:
            raise ProtocolError(f"blob {digest.hex()[:16]} was neither sent nor proven in this session")
        return entry

    def adopt(self, digest: bytes, name: Name) -> None:
        """A value was made of it."""
        entry = self.offered[digest]
        entry.due = False
        entry.values += 1
        self.values[name] = digest

    def freed(self, name: Name) -> tuple[bytes, int] | None:
        """A value has ended; returns the digest and the times of a blob that is released by it."""
        digest = self.values.pop(name, None)
        if digest is None:
            return None
        entry = self.offered[digest]
        entry.values -= 1
        if entry.values or entry.due:
            return None
        del self.offered[digest]
        return digest, entry.times
