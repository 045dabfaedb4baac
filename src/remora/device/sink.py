"""What the device needs from a session, and the session that is bound now."""

from __future__ import annotations

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

    @property
    def executor_device(self) -> str:
        """What the executor computes on: "cpu" or "cuda"."""

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

    @property
    def device_type(self) -> str:
        """Of the executor, "cpu" or "cuda": a few kernels lay their results out as their device does."""
        return self.sink.executor_device.partition(":")[0] if self.sink is not None else "cpu"

    def bind(self, recorder: Recorder, sink: Sink) -> None:
        self.recorder, self.sink, self.ended = recorder, sink, None

    @property
    def unused(self) -> bool:
        """Whether this process has had no session yet, and so no remora tensor."""
        return self.recorder is None and self.ended is None

    def unbind(self, reason: Exception) -> None:
        self.recorder = self.sink = None
        self.ended = reason

    def need(self) -> tuple[Recorder, Sink]:
        """The bound session; starts one if there was none yet."""
        if self.recorder is None or self.sink is None:
            if self.ended is not None:
                raise self.ended
            if self.start is None:
                raise Disconnected("no session: call remora.connect() first")
            self.start()
        assert self.recorder is not None
        assert self.sink is not None
        return self.recorder, self.sink


bound = Bound()
