"""One end of a session's frame stream, as a pure state machine: numbering, acknowledging, resending.

The stream outlives connections. Frames count from 1 in each direction; a frame is kept until the peer has
acknowledged it; after a cut, the peer says what it has and the rest is sent again, and a frame that arrives
twice is noticed by its number. No I/O, no clock.
"""

from __future__ import annotations

from collections import deque

import msgspec

from remora.errors import ProtocolError
from remora.wire.codec import encode
from remora.wire.frames import Envelope

_NOTHING = msgspec.Raw(encode(()))


class Stream:
    """State of one end.

    Args:
        ack_every: how many received frames may wait before `ack_due` turns true.
    """

    def __init__(self, ack_every: int = 64) -> None:
        self.sent = 0  # seq of the last frame sent
        self.acked = 0  # highest seq that the peer is known to have
        self.received = 0  # highest seq received from the peer
        self.told = 0  # the `received` that the peer has been told
        self.ack_every = ack_every
        self._kept: deque[tuple[int, bytes]] = deque()  # (seq, encoded messages)
        self.kept_nbytes = 0

    @property
    def kept_frames(self) -> int:
        return len(self._kept)

    @property
    def ack_due(self) -> bool:
        return self.received - self.told >= self.ack_every

    def send(self, messages: bytes) -> bytes:
        """Numbers one frame and returns its bytes. `messages`: the encoded array of messages."""
        self.sent += 1
        self._kept.append((self.sent, messages))
        self.kept_nbytes += len(messages)
        return self._frame(self.sent, messages)

    def ack_frame(self) -> bytes:
        """A frame that carries nothing but the acknowledgement."""
        return self._frame(0, _NOTHING)

    def receive(self, envelope: Envelope) -> bool:
        """Takes note of a received frame; true if its messages are new and must be acted on.

        Raises:
            ProtocolError: a number was skipped, or the peer acknowledges what was never sent.
        """
        self._acknowledge(envelope.ack)
        if envelope.seq <= self.received:  # an ack alone (0), or a resent frame that had arrived
            return False
        if envelope.seq != self.received + 1:
            raise ProtocolError(f"frame {envelope.seq} follows frame {self.received}; some were lost")
        self.received = envelope.seq
        return True

    def resume(self, peer_received: int) -> list[bytes]:
        """Frames to send again on a new connection, given what the peer says that it has.

        Raises:
            ProtocolError: the peer claims, or misses, frames that do not exist any more.
        """
        if peer_received < self.acked:
            raise ProtocolError(f"peer has {peer_received} frames but acknowledged {self.acked}")
        self._acknowledge(peer_received)
        return [self._frame(seq, messages) for seq, messages in self._kept]

    def _frame(self, seq: int, messages: bytes | msgspec.Raw) -> bytes:
        self.told = self.received
        raw = messages if isinstance(messages, msgspec.Raw) else msgspec.Raw(messages)
        return encode(Envelope(seq, self.received, raw))

    def _acknowledge(self, ack: int) -> None:
        if ack > self.sent:
            raise ProtocolError(f"peer acknowledges frame {ack}; only {self.sent} were sent")
        self.acked = max(self.acked, ack)
        while self._kept and self._kept[0][0] <= ack:
            _, messages = self._kept.popleft()
            self.kept_nbytes -= len(messages)
