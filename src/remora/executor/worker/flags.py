"""PyTorch's process-wide flags, of which the worker has one set and each session its own."""

from __future__ import annotations

from typing import Protocol

from remora.errors import UnsupportedOp
from remora.ops import flags


class Flagged(Protocol):
    """A session. flags: what it has set, in the order of the last calls."""

    flags: dict[flags.Key, flags.Values]


class Flags:
    """Sets the flags of one session at a time."""

    def __init__(self) -> None:
        self.owner: Flagged | None = None
        self.initial = flags.current()

    def enter(self, session: Flagged) -> None:
        """After this, the flags are those of the session."""
        if self.owner is session:
            return
        if self.owner is not None and self.owner.flags:
            self._reset()
        self.owner = session
        for key, values in session.flags.items():
            flags.write(key[0], values)

    def leave(self, session: Flagged) -> None:
        if self.owner is session:
            if session.flags:
                self._reset()
            self.owner = None

    def set(self, session: Flagged, setter: str, values: flags.Values) -> None:
        """Raises UnsupportedOp: this PyTorch has no such flag, or does not take the value."""
        self.enter(session)
        try:
            flags.write(setter, values)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            said = str(error).partition("\n")[0]
            raise UnsupportedOp(
                f"this executor cannot set PyTorch's flag {setter} to {values}: {said}"
            ) from None
        key = flags.key_of(setter, values)
        session.flags.pop(key, None)
        session.flags[key] = values

    def _reset(self) -> None:
        for setter, values in self.initial:
            flags.write(setter, values)
