"""The session's link to its executor: frames out, replies in, and a new channel when the old one is cut."""

from __future__ import annotations

import itertools
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from remora.capture.interrupts import uninterrupted
from remora.config import ClientSettings
from remora.errors import AuthError, ConnectError, NobodyListens, ProtocolError, Refused, SessionLost
from remora.runahead.saying import FEW_EARLY
from remora.transport.interface import Channel, ChannelCut, Transport
from remora.transport.stream import Stream
from remora.wire.codec import decode_envelope, decode_to_client, encode
from remora.wire.limits import MAX_DEPTH
from remora.wire.messages import (
    DeviceFacts,
    Done,
    Early,
    Failed,
    Grant,
    Lost,
    Marked,
    Memory,
    Pushed,
    PushFailed,
    ToClient,
    ToExecutor,
    Undone,
    Values,
)

Reply = Values | Done | Memory | DeviceFacts

PING_AFTER_S = 2.0  # of silence while waiting
SILENCE_S = 10.0  # without any sign of life: the link counts as cut
REFUSED_S = 1.5  # an address where nobody listens any more is given up after this
REQUEST_TRIES = 4
PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)

T = TypeVar("T")


class Link:
    """Blocking; the session's lock is held around every call.

    What waits may be interrupted (Ctrl-C): the channel is then dropped, since a frame may be half sent or half
    read, and the next call resumes on a new one. What is committed is sent in any case.

    Args:
        notice: told when the link is cut and when it is back.
        story: what row `row` of segment `segment` is, in words; with a third argument: and what else may be at
            fault. living: which of the session's values the program still holds, in words.
    """

    def __init__(
        self,
        transport: Transport,
        grant: Grant,
        settings: ClientSettings,
        notice: Callable[[str], None],
        story: Callable[..., str] = lambda segment, row: "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        living: Callable[[], str] = lambda: "",
    ) -> None:
        self.transport, self.grant, self.settings = transport, grant, settings
        self.notice, self.story, self.living = notice, story, living
        self.clock, self.sleep = clock, sleep
        self.stream = Stream()
        self.epoch = grant.epoch
        self.channel: Channel | None = None
        self.failed: Failed | None = None
        self.lost: str | None = None  # why the session is over
        self.round_trips = 0
        self.reconnects = 0
        self.on_mark: Callable[[Marked], None] = lambda marked: None
        self.on_push: Callable[[Pushed | PushFailed], None] = lambda answer: None
        self.early: dict[int, Values] = {}  # answers to questions that are still to be asked
        self.early_used = 0
        self.on_early: Callable[[Early], bool] | None = None  # whether it is one of those; None: none is
        self.on_undone: Callable[[Undone], None] = lambda undone: None
        self.meanwhile: Callable[[], None] = lambda: None  # called now and then while it waits
        self._values: dict[int, Reply] = {}
        self._unsent: deque[bytes] = deque()  # committed frames
        self._closed_sent = self._closed_received = 0  # bytes of channels that are gone

    def open(self, timeout_s: float) -> None:
        """Opens the first channel."""
        self.channel, _ = self.transport.open_channel(self.grant, self.epoch, 0, timeout_s)

    @property
    def bytes_sent(self) -> int:
        return self._closed_sent + (self.channel.bytes_sent if self.channel else 0)

    @property
    def bytes_received(self) -> int:
        return self._closed_received + (self.channel.bytes_received if self.channel else 0)

    def commit(self, messages: list[ToExecutor]) -> None:
        """Numbers one frame, which will be sent from now on, whatever happens. Waits for nothing."""
        self._unsent.append(self.stream.send(encode(messages)))

    def transmit(self) -> None:
        """Sends what is committed. Blocks while the link is cut, or too much is unacknowledged.

        Raises:
            SessionLost: the session's state is gone.
        """
        self.send()
        grant = self.grant
        while (
            self.stream.kept_frames > grant.in_flight_frames
            or self.stream.kept_nbytes > grant.in_flight_nbytes
        ):
            self._carefully(self._receive_one)
            self.check_alive()

    def send(self) -> None:
        """Sends what is committed; waits for no acknowledgement."""
        self.check_alive()
        if self._unsent:
            self._carefully(self._send_committed)

    def wait(self, ticket: int) -> Reply | None:
        """Blocks until the reply to `ticket` is there; None if a failure came in its place: see `failed`.

        Raises:
            SessionLost: the session's state is gone.
        """
        if self.on_early is not None and len(self.early) < FEW_EARLY:
            self.poll()
        early = self._early(ticket)
        if early is not None:
            return early
        self.round_trips += 1
        while True:
            reply = self._early(ticket) or self._values.pop(ticket, None)
            if reply is not None:
                self._values.clear()  # older tickets belong to calls that were interrupted
                return reply
            if self.failed is not None:
                return None
            self.check_alive()
            self._carefully(self._receive_one)

    def _early(self, ticket: int) -> Values | None:
        reply = self.early.pop(ticket, None)
        if reply is not None:
            self.early_used += 1
            for older in [other for other in self.early if other < ticket]:  # of calls that were interrupted
                del self.early[older]
        return reply

    def wait_until(self, known: Callable[[], bool]) -> None:
        """Blocks until `known`, which replies change, or until a failure has come: see `failed`.

        Raises:
            SessionLost: the session's state is gone.
        """
        self.round_trips += 1
        while not known() and self.failed is None:
            self.check_alive()
            self._carefully(self._receive_one)

    def poll(self) -> None:
        """Takes in what has arrived; waits for nothing."""
        self.check_alive()
        self._carefully(self._receive_arrived)

    def persist(self, request: Callable[[], T]) -> T:
        """Makes a request beside the channel; after a cut, again once the executor is reached again.

        Raises:
            SessionLost: it was not reached through the grace period.
            ConnectError: it is reached, and the request fails all the same; Refused, AuthError: its answer.
        """
        for _ in range(REQUEST_TRIES - 1):
            self.check_alive()
            try:
                return request()
            except (AuthError, Refused):
                raise
            except ConnectError as error:
                reason = str(error)
            self._reconnect(reason)
        return request()

    def idle(self) -> None:
        """Takes in what has arrived and gives a sign of life; after a cut, one quiet try to resume."""
        if self.lost is not None:
            return
        try:
            if self.channel is None:
                self._resume()
            channel = self.channel
            assert channel is not None
            self._send_committed()
            self._receive_arrived()
            channel.send(self.stream.ack_frame())
        except (AuthError, Refused, ProtocolError, SessionLost) as error:
            self._lose(str(error))
        except (ChannelCut, ConnectError):
            self._abandon()

    def close(self) -> None:
        self._abandon()

    def check_alive(self) -> None:
        if self.lost is not None:
            raise SessionLost(self.lost)

    def _carefully(self, act: Callable[[], None]) -> None:
        """Does something on the channel; after a cut, a new channel is there when this returns."""
        try:
            if self.channel is None:
                self._reconnect("")
            act()
        except ChannelCut as cut:
            self._reconnect(str(cut))
        except BaseException:
            self._abandon()
            raise

    def _send_committed(self) -> None:
        assert self.channel is not None
        while self._unsent:
            self.channel.send(self._unsent[0])
            self._unsent.popleft()

    def _receive_arrived(self) -> None:
        channel = self.channel
        assert channel is not None
        while (frame := channel.receive(0)) is not None:
            self._take(frame)

    def _receive_one(self) -> None:
        """Waits for one frame, with pings through silence."""
        channel = self.channel
        assert channel is not None
        started = self.clock()
        while (frame := channel.receive(PING_AFTER_S)) is None:
            silent_s = self.clock() - max(channel.heard_at, started)
            if silent_s > SILENCE_S:
                raise ChannelCut(f"the executor gave no sign of life for {silent_s:.0f} s")
            channel.ping()
            self.meanwhile()
        self._take(frame)

    def _take(self, frame: bytes) -> None:
        with uninterrupted:
            try:
                envelope = decode_envelope(frame)
                messages = decode_to_client(bytes(envelope.messages))
                new = self.stream.receive(envelope)
            except ProtocolError as error:
                raise self._lose(f"the executor broke the protocol: {error}") from None
            if new:
                for message in messages:
                    self._act(message)

    def _act(self, message: ToClient) -> None:
        if isinstance(message, Reply):
            self._values[message.ticket] = message
        elif isinstance(message, Marked):
            self.on_mark(message)
        elif isinstance(message, Pushed | PushFailed):
            self.on_push(message)
        elif isinstance(message, Early):
            room = len(self.early) < 2 * MAX_DEPTH
            if room and self.on_early is not None and self.on_early(message):
                self.early[message.ticket] = Values(message.ticket, message.values)
        elif isinstance(message, Undone):
            self.on_undone(message)
        elif isinstance(message, Failed):
            self.failed = message
        elif isinstance(message, Lost):
            row = message.segment, message.row, *((True,) if message.late else ())
            ran = self.story(*row) if message.segment else ""
            self._lose(message.reason + (f", which is {ran}" if ran else ""))

    def _abandon(self) -> None:
        channel, self.channel = self.channel, None
        if channel is not None:
            self._closed_sent += channel.bytes_sent
            self._closed_received += channel.bytes_received
            channel.close()

    def _reconnect(self, reason: str) -> None:
        """A new channel for the same session, tried through the grace period; without a reason, quietly.

        Raises:
            SessionLost: the executor does not know the session any more, refuses it, or nobody listens there.
        """
        self._abandon()
        self.check_alive()
        started = self.clock()
        refused_at: float | None = None
        for attempt in itertools.count():
            try:
                self._resume()
                break
            except (AuthError, Refused, SessionLost, ProtocolError) as error:
                raise self._lose(str(error)) from None
            except ConnectError as error:
                now = self.clock()
                refused_at = (refused_at or now) if isinstance(error, NobodyListens) else None
                left_s = self.settings.grace_s - (now - started)
                if refused_at is not None:
                    left_s = min(left_s, REFUSED_S - (now - refused_at))
                if left_s <= 0:
                    raise self._lose(f"not reached again for {now - started:.1f} s ({error})") from None
                if not attempt:
                    text = f"link cut ({reason or error})"
                    self.notice(f"{text}; trying again for up to {self.settings.grace_s:g} s")
                self.sleep(min(left_s, PAUSES_S[min(attempt, len(PAUSES_S) - 1)]))
        self.reconnects += 1
        if reason or attempt:
            self.notice(
                f"link was cut ({reason}); back after {self.clock() - started:.1f} s, nothing was lost"
            )

    def _resume(self) -> None:
        self.epoch += 1
        channel, peer_received = self.transport.open_channel(
            self.grant, self.epoch, self.stream.received, self.settings.connect_timeout_s
        )
        self._unsent.clear()  # all of it is among what is sent again
        try:
            for frame in self.stream.resume(peer_received):
                channel.send(frame)
        except ChannelCut as cut:
            channel.close()
            raise ConnectError(str(cut)) from None
        except BaseException:
            channel.close()
            raise
        self.channel = channel

    def _lose(self, reason: str) -> SessionLost:
        self.lost = (
            f"session {self.grant.session} on {self.transport.address} is lost: {reason}. "
            f"Its tensors are gone{self.living()}; remora.disconnect() and connect again"
        )
        return SessionLost(self.lost)


def to_stderr(address: str) -> Callable[[str], None]:
    """Notices for a person: one line each."""
    return lambda text: print(f"remora: {address}: {text}", file=sys.stderr, flush=True)
