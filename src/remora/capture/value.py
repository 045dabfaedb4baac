"""A value that lives on an executor, as the client knows it: a name, and the facts about its shape."""

from __future__ import annotations

from collections import deque
from typing import Any

OUT_BITS = 16
OUT_MASK = (1 << OUT_BITS) - 1


class Value:
    """One output of one row. Its name is known before it exists; when the last user is gone, it is freed.

    code: row and output in one number, as rows refer to each other.
    meta: shape, stride, offset, dtype; interned, compared by identity.
    uploaded: it came from the client and was not computed.
    shadow: a copy on the client while it is known to be equal, else None (device/shadow.py).
    """

    __slots__ = ("__weakref__", "code", "graveyard", "meta", "segment", "session", "shadow", "uploaded")

    def __init__(
        self, session: str, graveyard: deque[tuple[int, int]], segment: int, code: int, meta: Any
    ) -> None:
        self.session = session
        self.graveyard = graveyard
        self.segment = segment
        self.code = code
        self.meta = meta
        self.shadow: Any = None
        self.uploaded = False

    def __del__(self) -> None:
        self.graveyard.append((self.segment, self.code))  # atomic; any thread, any moment

    @property
    def name(self) -> tuple[int, int, int]:
        return self.segment, self.code >> OUT_BITS, self.code & OUT_MASK
