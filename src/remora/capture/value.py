"""A value that lives on an executor, as the client knows it: a name, and the facts about its shape."""

from __future__ import annotations

from typing import Any

import msgspec

OUT_BITS = 16
OUT_MASK = (1 << OUT_BITS) - 1


class Value(msgspec.Struct, eq=False, gc=False):
    """One output of one row. Its name is known before it exists. A Struct, for one is made for each op.

    home: the recorder that named it.
    code: row and output in one number, as rows refer to each other.
    meta: shape, stride, offset, dtype; interned, compared by identity.
    shadow: a copy on the client while it is known to be equal, else None (device/shadow.py).
    uploaded: it came from the client and was not computed.
    born: segment and code that it had first, if a placement has renamed it: what its memory is known by.
    """

    home: Any
    segment: int
    code: int
    meta: Any
    shadow: Any = None
    uploaded: bool = False
    born: tuple[int, int] | None = None

    @property
    def name(self) -> tuple[int, int, int]:
        return self.segment, self.code >> OUT_BITS, self.code & OUT_MASK


class Kept(Value, eq=False, gc=False):
    """A value that the executor keeps: it outlived its segment, or was uploaded. Freed when its last user is gone."""

    def __del__(self) -> None:
        self.home.graveyard.append((self.segment, self.code))  # atomic; any thread, any moment
