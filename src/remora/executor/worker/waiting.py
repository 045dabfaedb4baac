"""Which pushed values a session's stream waits for, and which will not come. Pure: events in, decisions out."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from remora.wire.binding import Name

MAX_ABANDONED = 1 << 16  # names that are remembered, so that one that comes late is dropped


class Waiting:
    """The stream stands still while `missing` holds a name.

    A name is known from its Await, its arrival or its Abandon on, whichever comes first. One that was abandoned
    before it came never comes: `arrive` drops it. One that came before it was abandoned stays.
    """

    def __init__(self) -> None:
        self.missing: dict[Name, str] = {}  # to who should send it
        self.abandoned: dict[Name, str] = {}  # to why it will not come
        self._sources: dict[Name, str] = {}  # of those abandoned, where an Await has said it

    @property
    def held(self) -> bool:
        return bool(self.missing)

    def wait(self, names: Iterable[Name], source: str, there: Collection[Name]) -> None:
        """An Await: the stream stands still for those that are neither there nor abandoned."""
        for name in names:
            if name in self.abandoned:
                self._sources[name] = source
            elif name not in there:
                self.missing[name] = source

    def arrive(self, names: Iterable[Name]) -> frozenset[Name]:
        """Values came; returns those to keep."""
        kept = frozenset(name for name in names if name not in self.abandoned)
        for name in kept:
            self.missing.pop(name, None)
        return kept

    def abandon(self, names: Iterable[Name], reason: str, there: Collection[Name]) -> None:
        """Values will not come; those that are there stay."""
        for name in names:
            if name in there or name in self.abandoned:
                continue
            source = self.missing.pop(name, None)
            if source is not None:
                self._sources[name] = source
            self.abandoned[name] = reason
        while len(self.abandoned) > MAX_ABANDONED:
            oldest = next(iter(self.abandoned))
            del self.abandoned[oldest]
            self._sources.pop(oldest, None)

    def story(self, name: Name) -> str | None:
        """Why a value did not come; None if that is not known here."""
        reason = self.abandoned.get(name)
        if reason is None:
            return None
        source = self._sources.get(name)
        sender = f"executor {source}" if source else "another executor"
        return f"this tensor was to come from {sender}, and did not: {reason or 'the client gave it up'}"
