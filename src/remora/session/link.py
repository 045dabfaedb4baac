"""The session's link to its executor: frames out, replies in, and a new channel when the old one is cut."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from remora.config import ClientSettings
from remora.errors import AuthError, ConnectError, NobodyListens, ProtocolError, Refused, SessionLost
from remora.transport.interface import Channel, ChannelCut, Transport
from remora.transport.stream import Stream
from remora.wire.codec import decode_envelope, decode_to_client, encode
from remora.wire.messages import Done, Failed, Grant, Lost, ToClient, ToExecutor, Values

PING_AFTER_S = 2.0  # of silence while waiting
SILENCE_S = 10.0  # without any sign of life: the link counts as cut
REFUSED_S = 1.5  # an address where nobody listens any more is given up after this
PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)


class Link:
    """Blocking; the session's lock is held around every call.

    notice: told when the link is cut and when it is back.
    """

    def __init__(
        self,
        transport: Transport,
        grant: Grant,
        settings: ClientSettings,
        notice: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.transport, self.grant = transport, grant
        self.settings, self.notice = settings, notice
        self.clock, self.sleep = clock, sleep
        self.stream = Stream()
        self.epoch = grant.epoch
        self.round_trips = 0
        self.failed: Failed | None = None
        self.lost: SessionLost | None = None
        self._values: dict[int, Values | Done] = {}
        self._closed_sent = self._closed_received = 0  # bytes of channels that are gone
        self.channel: Channel | None = None
        self.reconnects = 0

    def open(self, timeout_s: float) -> None:
        """Opens the first channel."""
        self.channel, _ = self.transport.open_channel(self.grant, self.epoch, 0, timeout_s)

    @property
    def bytes_sent(self) -> int:
        return self._closed_sent + (self.channel.bytes_sent if self.channel else 0)

    @property
    def bytes_received(self) -> int:
        return self._closed_received + (self.channel.bytes_received if self.channel else 0)

    def send(self, messages: list[ToExecutor]) -> None:
        """Sends one frame; reconnects when the channel is cut. Blocks only while too much is unacknowledged."""
        self._check_alive()
        frame = self.stream.send(encode(messages))
        try:
            if self.channel is None:
                self._reconnect("it was closed")  # sends the new frame too: it is kept
            else:
                self.channel.send(frame)
        except ChannelCut as cut:
            self._reconnect(str(cut))
        except BaseException:
            self._abandon()  # a frame may be half sent (Ctrl-C); what is kept is sent again
            raise
        grant = self.grant
        while self.stream.kept_frames > grant.in_flight_frames or self.stream.kept_nbytes > grant.in_flight_nbytes:
            self._await_frame()

    def wait(self, ticket: int) -> Values | Done:
        """Blocks until the reply to `ticket`, or a failure, is there. A failure raises nothing: see `failed`.

        Raises:
            SessionLost: the session's state is gone.
        """
        self.round_trips += 1
        while True:
            reply = self._values.pop(ticket, None)
            if reply is not None:
                self._values.clear()  # older tickets belong to calls that were interrupted
                return reply
            if self.failed is not None:
                return Done(ticket)
            self._check_alive()
            self._await_frame()

    def poll(self) -> None:
        """Takes in what has arrived; never blocks, never reconnects."""
        if self.channel is None:
            return
        try:
            while (frame := self.channel.receive(0)) is not None:
                self._take(frame)
            if self.stream.told < self.stream.received:
                self.channel.send(self.stream.ack_frame())
        except ChannelCut:
            self._abandon()

    def renew(self) -> None:
        """Tells the executor that this session is alive."""
        if self.channel is None:
            return
        try:
            self.channel.send(self.stream.ack_frame())
        except ChannelCut:
            self._abandon()

    def close(self) -> None:
        self._abandon()

    def _await_frame(self) -> None:
        """Waits for one frame, with pings through silence and a new channel after a cut."""
        if self.channel is None:
            self._reconnect("it was closed")
        assert self.channel is not None
        channel = self.channel
        started = self.clock()
        try:
            while True:
                frame = channel.receive(PING_AFTER_S)
                if frame is not None:
                    self._take(frame)
                    return
                silent_s = self.clock() - max(channel.heard_at, started)
                if silent_s > SILENCE_S:
                    self._reconnect(f"the executor gave no sign of life for {silent_s:.0f} s")
                    return
                channel.ping()
        except ChannelCut as cut:
            self._reconnect(str(cut))

    def _take(self, frame: bytes) -> None:
        envelope = decode_envelope(frame)
        if not self.stream.receive(envelope):
            return
        for message in decode_to_client(bytes(envelope.messages)):
            self._act(message)

    def _act(self, message: ToClient) -> None:
        if isinstance(message, (Values, Done)):
            self._values[message.ticket] = message
        elif isinstance(message, Failed):
            self.failed = message
        elif isinstance(message, Lost):
            self.lost = SessionLost(
                f"session {self.grant.session} on {self.transport.address} is lost: {message.reason}. "
                "Its tensors are gone; remora.disconnect() and connect again"
            )

    def _check_alive(self) -> None:
        if self.lost is not None:
            raise self.lost

    def _abandon(self) -> None:
        channel, self.channel = self.channel, None
        if channel is not None:
            self._closed_sent += channel.bytes_sent
            self._closed_received += channel.bytes_received
            channel.close()

    def _reconnect(self, reason: str) -> None:
        """A new channel for the same session, tried through the grace period.

        Raises:
            SessionLost: the executor does not know the session any more, refuses it, or nobody listens there.
        """
        self._abandon()
        self._check_alive()
        started = self.clock()
        told = False
        for attempt in range(1_000_000):
            try:
                self._resume()
            except (NobodyListens, ConnectError) as error:
                waited_s = self.clock() - started
                limit_s = REFUSED_S if isinstance(error, NobodyListens) else self.settings.grace_s
                if waited_s > limit_s:
                    raise self._give_up(f"not reached again for {waited_s:.1f} s ({error})") from None
                if not told and waited_s > 0.1:
                    self.notice(f"link cut ({reason}); trying again for up to {self.settings.grace_s:g} s")
                    told = True
                self.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
            except (AuthError, Refused, SessionLost, ProtocolError) as error:
                raise self._give_up(str(error)) from None
            else:
                self.reconnects += 1
                if told:
                    self.notice(f"link is back after {self.clock() - started:.1f} s; nothing was lost")
                return

    def _resume(self) -> None:
        self.epoch += 1
        channel, peer_received = self.transport.open_channel(
            self.grant, self.epoch, self.stream.received, self.settings.connect_timeout_s
        )
        try:
            for frame in self.stream.resume(peer_received):
                channel.send(frame)
        except ChannelCut as cut:
            channel.close()
            raise ConnectError(str(cut)) from None
        self.channel = channel

    def _give_up(self, reason: str) -> SessionLost:
        self.lost = SessionLost(
            f"session {self.grant.session} on {self.transport.address} is lost: {reason}. "
            "Its tensors are gone; remora.disconnect() and connect again"
        )
        return self.lost


def to_stderr(address: str) -> Callable[[str], None]:
    """Notices for a person: one line each."""
    return lambda text: print(f"remora: {address}: {text}", file=sys.stderr, flush=True)
