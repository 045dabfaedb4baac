"""What a session sent, as a digest that can be compared between processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from remora.capture.recorder import Segment


class Wiring:
    """A tap of the session: digests what is sent, in words that mean the same in every process.

    A slot is the distance to the segment that made its value, or the ordinal of the upload it came from.
    """

    def __init__(self) -> None:
        self.segments = 0
        self._hash = blake3()
        self._made: set[int] = set()
        self._uploads: dict[int, int] = {}

    def __call__(self, segment: Segment) -> None:
        slots = [self._slot(segment.number, *value.name) for value in segment.slots]
        self._made.add(segment.number)
        self.segments += 1
        self._hash.update(repr((segment.captured.template.id, slots)).encode())

    def _slot(self, segment: int, number: int, row: int, out: int) -> tuple[str, int, int, int]:
        if number in self._made:
            return "made", segment - number, row, out
        return "upload", self._uploads.setdefault(number, len(self._uploads)), row, out

    @property
    def digest(self) -> str:
        return str(self._hash.hexdigest())
