"""A transport that misbehaves by a script, in the ways in which a network does to TCP connections.

Frames arrive in order until the connection is cut, then none; what had arrived by then is up to the script;
and while the network is down, the executor cannot be reached. Nothing here is random or reads a clock: equal
scripts give equal misfortunes.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from remora.errors import ConnectError
from remora.transport.interface import Channel, ChannelCut, Transport
from remora.wire.codec import decode_envelope
from remora.wire.messages import BlobAnswer, Grant, OpenSession, Status

T = TypeVar("T")


class Way(Enum):
    STEPS = "client to executor"
    REPLIES = "executor to client"


@dataclass(frozen=True)
class Cut:
    """The connection breaks at one frame.

    Args:
        channel: the how-manieth channel that was opened, from 1.
        way: direction of the frame.
        frame: its number on that channel in that direction, from 1.
        arrives: whether this frame still arrives; later ones do not.
        unnoticed: how many sends after the cut still seem to work, as they fill the socket's buffer.
        drained: how many replies had arrived here before the cut and are still read after it.
        silent: no error either, only silence, until the client closes the channel (a dead router). The
            executor's end stays open until the client has come back.
        refused: how many attempts after it to reach the executor, on any route, fail.
        twice: by how many frames each end lags in what it says on resuming that it has: bytes that were on
            their way into it, and are counted once it has spoken. They are sent again and so arrive twice.
    """

    channel: int
    way: Way
    frame: int
    arrives: bool = False
    unnoticed: int = 0
    drained: int = 0
    silent: bool = False
    refused: int = 0
    twice: int = 0


@dataclass(frozen=True)
class Delay:
    """One frame, and so all after it, takes `delay_s` longer."""

    channel: int
    way: Way
    frame: int
    delay_s: float


Fault = Cut | Delay


def random_script(rng: random.Random, channels: int, frames: int) -> tuple[Fault, ...]:
    """One cut on each of the first `channels` channels, within `frames` frames, and a few delays."""
    script: list[Fault] = []
    for channel in range(1, channels + 1):
        cut = Cut(
            channel,
            rng.choice(list(Way)),
            rng.randint(1, frames),
            arrives=rng.random() < 0.5,
            unnoticed=rng.randrange(4),
            drained=rng.randrange(4),
            silent=rng.random() < 0.2,
            refused=rng.randrange(3),
            twice=rng.randrange(4),
        )
        script.append(cut)
        for _ in range(rng.randrange(3)):
            script.append(Delay(channel, rng.choice(list(Way)), rng.randint(1, frames), rng.random() * 0.01))
    return tuple(script)


class FaultyTransport:
    """`inner` with the faults of `script`.

    Args:
        sleep: waits out delays and the timeouts of a silent channel.
    """

    def __init__(
        self, inner: Transport, script: Sequence[Fault], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.address = inner.address
        self.bytes_sent = 0
        self.bytes_received = 0
        self._inner = inner
        self._script = script
        self._sleep = sleep
        self._opened = 0  # channels
        self._last: FaultyChannel | None = None
        self._refused = 0
        self._twice = 0
        self._client_knows = 0  # highest step seq that the client has been told to have arrived
        self._executor_knows = 0  # highest reply seq likewise

    def open_session(self, wants: OpenSession, timeout_s: float) -> Grant:
        return self._reach(lambda: self._inner.open_session(wants, timeout_s))

    def close_session(self, grant: Grant, timeout_s: float) -> None:
        self._reach(lambda: self._inner.close_session(grant, timeout_s))

    def open_channel(self, grant: Grant, epoch: int, received: int, timeout_s: float) -> tuple[Channel, int]:
        """See the interface. The numbers lag by `twice`, never behind what the other end knows already."""
        last = self._last
        if last is not None:
            self._client_knows = max(self._client_knows, last.client_knows)
            self._executor_knows = max(self._executor_knows, last.executor_knows)
        told = max(received - self._twice, self._executor_knows)
        inner, arrived = self._reach(lambda: self._inner.open_channel(grant, epoch, told, timeout_s))
        arrived = max(arrived - self._twice, self._client_knows)
        self._client_knows, self._executor_knows, self._twice = arrived, told, 0
        if last is not None:
            last.inner.close()
        self._opened += 1
        script = [fault for fault in self._script if fault.channel == self._opened]
        self._last = FaultyChannel(inner, script, self._sleep, self._on_cut)
        return self._last, arrived

    def query_blobs(self, grant: Grant, digests: tuple[str, ...]) -> BlobAnswer:
        return self._reach(lambda: self._inner.query_blobs(grant, digests))

    def prove_blobs(self, grant: Grant, proofs: dict[str, str]) -> None:
        self._reach(lambda: self._inner.prove_blobs(grant, proofs))

    def put_blob(
        self, grant: Grant, digest: str, data: memoryview, progress: Callable[[int], None] | None = None
    ) -> None:
        self._reach(lambda: self._inner.put_blob(grant, digest, data, progress))

    def get_bulk(self, grant: Grant, bulk: str, into: memoryview) -> None:
        self._reach(lambda: self._inner.get_bulk(grant, bulk, into))

    def abandon(self, grant: Grant, names: tuple[int, ...], reason: str, timeout_s: float) -> None:
        self._reach(lambda: self._inner.abandon(grant, names, reason, timeout_s))

    def op_table(self, timeout_s: float) -> dict[str, str]:
        return self._reach(lambda: self._inner.op_table(timeout_s))

    def op_schemas(self, timeout_s: float) -> dict[str, str]:
        return self._reach(lambda: self._inner.op_schemas(timeout_s))

    def status(self, timeout_s: float) -> Status:
        return self._reach(lambda: self._inner.status(timeout_s))

    def close(self) -> None:
        if self._last is not None:
            self._last.inner.close()
        self._inner.close()

    def _on_cut(self, cut: Cut) -> None:
        self._refused = cut.refused
        self._twice = cut.twice

    def _reach(self, ask: Callable[[], T]) -> T:
        if self._refused:
            self._refused -= 1
            raise ConnectError(f"{self.address}: connection refused (by the script of faults)")
        try:
            return ask()
        finally:
            self.bytes_sent = self._inner.bytes_sent
            self.bytes_received = self._inner.bytes_received


class FaultyChannel:
    """A channel of `FaultyTransport`."""

    def __init__(
        self,
        inner: Channel,
        script: Sequence[Fault],
        sleep: Callable[[float], None],
        on_cut: Callable[[Cut], None],
    ) -> None:
        self.inner = inner
        self.bytes_sent = inner.bytes_sent
        self.bytes_received = inner.bytes_received
        self.heard_at = inner.heard_at
        self.client_knows = 0  # highest ack that has arrived here
        self.executor_knows = 0  # and there
        self._cuts = {(f.way, f.frame): f for f in script if isinstance(f, Cut)}
        self._delays = {(f.way, f.frame): f.delay_s for f in script if isinstance(f, Delay)}
        self._sleep = sleep
        self._on_cut = on_cut
        self._steps = 0
        self._replies = 0
        self._delayed: tuple[bytes, float] | None = None  # the next reply, and the seconds until it arrives
        self._drained: deque[bytes] = deque()
        self._unnoticed = 0
        self._cut: Cut | None = None
        self._closed = False

    def send(self, frame: bytes) -> None:
        if self._cut is not None or self._closed:
            if not self._cut or self._closed or not (self._cut.silent or self._unnoticed):
                raise ChannelCut("connection reset by the script of faults")
            self._unnoticed -= 1
            return
        self._steps += 1
        self._sleep_if(self._delays.get((Way.STEPS, self._steps), 0.0))
        cut = self._cuts.get((Way.STEPS, self._steps))
        if cut is None or cut.arrives:
            self.inner.send(frame)
            self.executor_knows = max(self.executor_knows, decode_envelope(frame).ack)
            self._mirror()
        if cut is not None:
            self._break(cut)

    def receive(self, timeout_s: float) -> bytes | None:
        if self._drained:
            return self._deliver(self._drained.popleft())
        if self._closed or (self._cut is not None and not self._cut.silent):
            raise ChannelCut("connection reset by the script of faults")
        if self._cut is not None:
            self._sleep_if(timeout_s)
            return None
        frame, delay_s = self._delayed or (None, 0.0)
        if frame is None:
            frame = self.inner.receive(timeout_s)
            if frame is None:
                return None
            self._replies += 1
            delay_s = self._delays.get((Way.REPLIES, self._replies), 0.0)
        if delay_s > timeout_s:
            self._sleep_if(timeout_s)
            self._delayed = (frame, delay_s - timeout_s)
            return None
        self._sleep_if(delay_s)
        self._delayed = None
        cut = self._cuts.get((Way.REPLIES, self._replies))
        if cut is None:
            return self._deliver(frame)
        self._break(cut, frame if cut.arrives else None)
        return self.receive(timeout_s)

    def ping(self) -> None:
        if self._closed or (self._cut is not None and not self._cut.silent):
            raise ChannelCut("connection reset by the script of faults")
        if self._cut is None:
            self.inner.ping()
            self._mirror()

    def close(self) -> None:
        self._closed = True
        self._drained.clear()
        if self._cut is None or not self._cut.silent:
            self.inner.close()

    def _break(self, cut: Cut, arrived: bytes | None = None) -> None:
        """The cut happens, after the reply `arrived`."""
        self._cut = cut
        self._unnoticed = cut.unnoticed
        replies = [] if arrived is None else [arrived]
        lost_one = cut.way is Way.REPLIES and arrived is None  # so that none after it may arrive
        with suppress(ChannelCut):
            while not lost_one and not self._delayed and len(replies) < cut.drained:
                reply = self.inner.receive(0.0)
                if reply is None:
                    break
                replies.append(reply)
        self._drained.extend(replies)
        self._delayed = None
        if not cut.silent:
            self.inner.close()
        self._on_cut(cut)

    def _deliver(self, frame: bytes) -> bytes:
        self.client_knows = max(self.client_knows, decode_envelope(frame).ack)
        self._mirror()
        return frame

    def _mirror(self) -> None:
        self.bytes_sent = self.inner.bytes_sent
        self.bytes_received = self.inner.bytes_received
        self.heard_at = self.inner.heard_at

    def _sleep_if(self, delay_s: float) -> None:
        if delay_s > 0:
            self._sleep(delay_s)
