"""Streams and events of the device. A session has one op stream, so what is recorded first runs first.

Streams are handles on it: waiting for another one is done already. Events are places in it, and are timed by the
executor, so an elapsed time holds no network.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import torch

from remora.device.index import current, device_at, index_of
from remora.device.sink import Moment, bound
from remora.errors import Disconnected, NotSupported

_PyTorchsStream, _PyTorchsEvent = torch.Stream, torch.Event
_TYPE = int(torch._C._autograd.DeviceType.PrivateUse1)
_numbers = itertools.count(1)
_thread = threading.local()


class Stream(_PyTorchsStream):
    """A handle on the session's op stream. `stream_id` tells handles apart; priority is taken and changes nothing."""

    _recorded: tuple[Any, Moment] | None  # what the last mark covers, and the mark

    def __new__(cls, device: Any = None, priority: int = 0, *, stream_id: int | None = None) -> Stream:
        number = next(_numbers) if stream_id is None else stream_id
        index = index_of(device)
        self = _PyTorchsStream.__new__(cls, stream_id=number, device_index=index, device_type=_TYPE)
        self._recorded = None
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def query(self) -> bool:
        """Whether everything recorded so far has run. Waits for nothing."""
        if bound.sink is None or bound.recorder is None:
            return True
        covers = (bound.recorder.session, bound.recorder.ops)
        if self._recorded is None or self._recorded[0] != covers:
            self._recorded = (covers, bound.sink.mark(index=index_of(self.device_index)))
        return bound.sink.passed(self._recorded[1], wait=False)

    def synchronize(self) -> None:
        if bound.sink is not None:
            bound.sink.barrier()

    def wait_event(self, event: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        event = event if event is not None else Event()
        event.record(self)
        return event

    def __enter__(self) -> Stream:
        _thread.__dict__.setdefault("outer", []).append(current_stream(self.device_index))
        set_stream(self)
        return self

    def __exit__(self, *error: object) -> None:
        set_stream(_thread.outer.pop())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, int, int]:
        return Stream, self.stream_id, self.device_index

    def __repr__(self) -> str:
        return f"<torch.remora.Stream device={self.device} stream_id={self.stream_id}>"


class Event(_PyTorchsEvent):
    """A place in the session's op stream."""

    _moment: Moment | None
    _session: Any
    _timed: bool

    def __new__(
        cls,
        device: Any = None,
        *,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
    ) -> Event:
        if interprocess:
            raise NotSupported("events of the remora device that other processes see")
        self = _PyTorchsEvent.__new__(cls, "cpu")
        timed = bool(device if isinstance(device, bool) else enable_timing)  # torch.cuda.Event(True)
        self._moment, self._session, self._timed = None, None, timed
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    @property
    def device(self) -> torch.device:
        return device_at(self._moment.index if self._moment is not None else 0)

    def record(self, stream: Any = None) -> None:
        """The event is behind everything recorded so far. Waits for nothing."""
        recorder, sink = bound.need()
        index = current() if stream is None else index_of(stream.device_index)
        self._moment, self._session = sink.mark(index=index), recorder.session

    def wait(self, stream: Any = None) -> None:
        """What is recorded from now on runs behind the event, as it does anyway."""

    def query(self) -> bool:
        """Whether the executor has passed the event. Waits for nothing."""
        return self._passed(wait=False)

    def synchronize(self) -> None:
        self._passed(wait=True)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds on the executor from this event to `end`; blocks until it has passed both.

        Raises:
            ValueError: one was made without `enable_timing`, or never recorded.
        """
        if not (self._timed and end._timed):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._moment is None or end._moment is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        if self._session != end._session:
            raise ValueError(
                "Both events must be recorded in one session: each executor has a clock of its own."
            )
        if self._moment.index != end._moment.index:
            raise ValueError(
                f"Both events must be recorded on one device, and these are on {self.device} and {end.device}: "
                "each executor has a clock of its own."
            )
        for event in (self, end):
            event.synchronize()
        return (end._moment.at_s - self._moment.at_s) * 1e3  # type: ignore[operator]

    def ipc_handle(self) -> bytes:
        raise NotSupported("events of the remora device that other processes see")

    def _passed(self, wait: bool) -> bool:
        if self._moment is None or self._moment.at_s is not None:
            return True
        recorder, sink = bound.need()
        if self._session != recorder.session:
            raise Disconnected(f"this event was recorded in session {self._session}, which has ended")
        return sink.passed(self._moment, wait)

    def __repr__(self) -> str:
        return "<torch.remora.Event>" if self._moment is not None else "<torch.remora.Event, not recorded>"


class StreamContext:
    """`with torch.remora.stream(s)`; None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.__enter__()

    def __exit__(self, *error: object) -> None:
        if self.stream is not None:
            self.stream.__exit__(*error)


def default_stream(device: Any = None) -> Stream:
    index = index_of(device)
    if index not in _defaults:
        _defaults[index] = Stream(index, stream_id=0)
    return _defaults[index]


def current_stream(device: Any = None) -> Stream:
    """This thread's, on a device."""
    streams: dict[int, Stream] = _thread.__dict__.get("streams", {})
    index = index_of(device)
    return streams.get(index) or default_stream(index)


def set_stream(stream: Stream | None) -> None:
    if stream is not None:
        _thread.__dict__.setdefault("streams", {})[stream.device_index] = stream


_defaults: dict[int, Stream] = {}


# torch.Stream and torch.Event, which ask C++ for streams and events of a device


class _Generic(type(_PyTorchsStream)):  # type: ignore[misc]
    """Of the classes that stand for PyTorch's: they make PyTorch's own for its own devices, know all of those as
    instances, and can be derived from as PyTorch's can."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        pair = _PAIRS.get(cls)
        if pair is None:
            return super().__call__(*args, **kwargs)
        theirs, ours = pair
        return (ours if _means_remora(args, kwargs) else theirs)(*args, **kwargs)

    def __instancecheck__(cls, item: Any) -> bool:
        pair = _PAIRS.get(cls)
        return isinstance(item, pair[0]) if pair is not None else super().__instancecheck__(item)

    def __subclasscheck__(cls, kind: Any) -> bool:
        pair = _PAIRS.get(cls)
        return issubclass(kind, pair[0]) if pair is not None else super().__subclasscheck__(kind)


def _means_remora(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if kwargs.keys() & {"device_type", "stream_id", "device_index"}:
        return False
    device = args[0] if args else kwargs.get("device")
    if device is None:
        accelerator = torch.accelerator.current_accelerator()
        return accelerator is not None and accelerator.type == "remora"
    return not isinstance(device, int) and torch.device(device).type == "remora"


class AnyStream(_PyTorchsStream, metaclass=_Generic):
    __doc__ = _PyTorchsStream.__doc__


class AnyEvent(_PyTorchsEvent, metaclass=_Generic):
    __doc__ = _PyTorchsEvent.__doc__


_PAIRS: dict[type, tuple[type, type]] = {
    AnyStream: (_PyTorchsStream, Stream),
    AnyEvent: (_PyTorchsEvent, Event),
}


def replace_streams() -> None:
    torch.Stream, torch.Event = AnyStream, AnyEvent  # type: ignore[misc,assignment]


def probe_streams() -> str | None:
    if torch.Stream is not AnyStream or torch.Event is not AnyEvent:
        return "torch.Stream and torch.Event know nothing of remora"
    return None if type(torch.Event("cpu")) is _PyTorchsEvent else 'torch.Event("cpu") is another one'
