"""What the device needs from a session, and the session that is bound now."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from remora.capture.recorder import Recorder
from remora.capture.value import Value
from remora.errors import Disconnected
from remora.wire.messages import DeviceFacts, Memory


@dataclass(frozen=True)
class Fetched:
    """One value as it came back: C order bytes, or None for a description."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    data: bytearray | bytes | None


class Moment:
    """A place in the op stream: when the executor passed it, by its own clock, and for how long it had computed
    for this session by then. None: it is not known to have passed it. index: of the device."""

    def __init__(self, ticket: int, index: int = 0) -> None:
        self.ticket, self.index = ticket, index
        self.at_s: float | None = None
        self.busy_s = 0.0


class Sink(Protocol):
    """The session, as the device sees it. index: of the device that is meant, below `n_devices`.

    computes: whether values are computed at all. Where they are not, only what tensors look like counts, and one
    without data (on the meta device) can be uploaded.
    """

    computes: bool

    @property
    def n_devices(self) -> int:
        """More than one where each executor is a device of its own."""

    @property
    def executor_device(self) -> str:
        """What the executor computes on, such as `cpu` or `cuda:0`."""

    def fetch(self, values: list[Value], describe: bool = False) -> list[Fetched]:
        """Blocks until the values are known. Raises what failed on the executor."""

    def put(self, dtype: str, shape: tuple[int, ...], data: bytes, index: int = 0) -> int:
        """A small tensor; returns the segment number of its value."""

    def store(self, dtype: str, shape: tuple[int, ...], data: memoryview, index: int = 0) -> int:
        """A large tensor; returns when its bytes may change again. Returns the segment number."""

    def seed(self, seed: int, generator: int = 0, index: int = 0) -> None:
        """Seeds a generator of a device, by its number in the session; 0 is the device's default one. None of these
        three waits."""

    def save_rng(self, generator: int = 0, index: int = 0) -> int:
        """The state that the generator has now becomes a value; returns its segment number."""

    def load_rng(self, value: Value, generator: int = 0, index: int = 0) -> None:
        """Sets the generator to the state in a value."""

    def default_dtype(self, name: str) -> None:
        """What `torch.get_default_dtype()` says from here on."""

    def flag(self, setter: str, values: tuple[bool | int | str | None, ...]) -> None:
        """The program has called one of the setters in ops/flags.py."""

    def mark(self, settle: bool = False, index: int = 0) -> Moment:
        """The place behind everything recorded so far. Waits for nothing. `settle`: the executor waits for its
        device there, and counts that as computing."""

    def passed(self, moment: Moment, wait: bool) -> bool:
        """Whether the executor has passed it; `wait`: blocks until it has."""

    def idle(self) -> None:
        """Tells the executor what has ended, and takes in what it has said. Waits for nothing."""

    def memory(self, reset_peak: bool = False, index: int = 0) -> Memory: ...

    def facts(self, index: int = 0) -> DeviceFacts: ...

    def memory_nbytes(self, index: int = 0) -> int:
        """What the executor grants."""

    def barrier(self) -> None:
        """Blocks until everything recorded so far has run."""

    def op_table(self) -> dict[str, str]:
        """Digest of the schema of each op that the executor runs; empty if it does not say."""

    def op_schemas(self) -> dict[str, str]:
        """Those schemas as text."""

    def executor(self) -> str:
        """The executor in words: its address and its PyTorch."""


class Bound:
    """The session in use. One at a time in a process."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.sink: Sink | None = None
        self.start: Callable[[], None] | None = None
        self.ended: Exception | None = None  # why there is no session any more; none starts by itself then
        self._starting = threading.RLock()
        # of the executor, "cpu" or "cuda": a few kernels lay their results out as their device does
        self.device_type = "cpu"
        self.n_devices = 1
        self.memo_scope: Any = "cpu"  # what outcomes of calls depend on besides the call

    def bind(self, recorder: Recorder, sink: Sink) -> None:
        self.recorder, self.sink, self.ended = recorder, sink, None
        self.device_type = sink.executor_device.partition(":")[0]
        self.n_devices = sink.n_devices
        self.memo_scope = self.device_type if self.n_devices == 1 else (self.device_type, "indexed")

    @property
    def unused(self) -> bool:
        """Whether this process has had no session yet, and so no remora tensor."""
        return self.recorder is None and self.ended is None

    def unbind(self, reason: Exception) -> None:
        self.recorder = self.sink = None
        self.ended, self.device_type, self.n_devices, self.memo_scope = reason, "cpu", 1, "cpu"

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
