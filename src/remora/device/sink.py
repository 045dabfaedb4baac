"""What the device needs from a session, and the session that is bound now."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from remora.capture.recorder import Recorder
from remora.capture.value import Value
from remora.errors import Disconnected


@dataclass(frozen=True)
class Fetched:
    """One value as it came back: C order bytes, or None for a description."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    data: bytearray | bytes | None


class Sink(Protocol):
    """The session, as the device sees it."""

    def fetch(self, values: list[Value], describe: bool = False) -> list[Fetched]:
        """Blocks until the values are known. Raises what failed on the executor."""

    def put(self, dtype: str, shape: tuple[int, ...], data: bytes) -> int:
        """A small tensor; returns the segment number of its value."""

    def store(self, dtype: str, shape: tuple[int, ...], data: memoryview) -> int:
        """A large tensor; returns when its bytes may change again. Returns the segment number."""

    def seed(self, seed: int) -> None: ...

    def default_dtype(self, name: str) -> None:
        """What `torch.get_default_dtype()` says from here on."""

    def rng_state(self, state: bytes | None = None) -> bytes: ...

    def barrier(self) -> None:
        """Blocks until everything recorded so far has run."""


class Bound:
    """The session in use. One at a time in a process."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.sink: Sink | None = None
        self.start: Callable[[], None] | None = None
        self.ended: Exception | None = None  # why there is no session any more; none starts by itself then
        self._starting = threading.RLock()

    def bind(self, recorder: Recorder, sink: Sink) -> None:
        self.recorder, self.sink, self.ended = recorder, sink, None

    def unbind(self, reason: Exception) -> None:
        self.recorder = self.sink = None
        self.ended = reason

    def need(self) -> tuple[Recorder, Sink]:
        """The bound session; starts one if there was none yet."""
        if self.recorder is None or self.sink is None:
            with self._starting:  # threads that use the device first, and at once, share one session
                if self.recorder is None:
                    self._start()
        assert self.recorder is not None
        assert self.sink is not None
        return self.recorder, self.sink

    def _start(self) -> None:
        if self.ended is not None:
            raise self.ended
        if self.start is None:
            raise Disconnected("no session: call remora.connect() first")
        self.start()

    def forked(self) -> None:
        """In a child process: what another thread of the parent held, nobody holds here."""
        self._starting = threading.RLock()


bound = Bound()
