"""The step channel over plain POST requests, for networks that let no WebSocket through.

A request's body and its answer are runs of (u32 little-endian length, frame). The executor holds a request
that has nothing to answer for up to `wait_s`.
"""

from __future__ import annotations

import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from remora.errors import ConnectError, ProtocolError, SessionLost
from remora.transport.address import Address
from remora.transport.connection import Traffic
from remora.transport.exchange import Exchange, count_in
from remora.transport.interface import Buffer, ChannelCut
from remora.wire.codec import decode_envelope
from remora.wire.limits import MAX_FRAME_NBYTES

FLUSH_NBYTES = 256 << 10  # buffered frames beyond this are posted at once
MAX_WAIT_S = 2.0  # of one long poll: its answer is also the sign of life
ANSWER_TIMEOUT_S = 10.0  # beyond the wait
MAX_ANSWER_NBYTES = 128 << 20
_LENGTH = struct.Struct("<I")


class PostChannel(Traffic):
    """Ordered frames over a connection of its own. `send` and `receive` are for one thread at a time.

    Args:
        path: of the session's steps, without the query.
        received: highest reply seq already here; sent with each request, so that a lost answer is repeated.
    """

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        path: str,
        headers: Mapping[str, str],
        epoch: int,
        received: int,
    ) -> None:
        super().__init__()
        self._exchange = Exchange(address, tls, headers, self)
        self._path = path
        self._epoch = epoch
        self._received = received
        self._buffered: list[bytes] = []
        self._buffered_nbytes = 0
        self._arrived: deque[bytes] = deque()
        self._lock = threading.Lock()  # one request at a time, so that frames stay in order
        self._buffer_lock = threading.Lock()
        self._cut: str | None = None
        self.peer_received = 0  # highest step seq that the executor has, from its last answer
        self.heard_at = time.monotonic()

    def send(self, frame: bytes) -> None:
        assert len(frame) <= MAX_FRAME_NBYTES, f"frame of {len(frame)} bytes"
        self._check_open()
        with self._buffer_lock:
            self._buffered.append(frame)
            self._buffered_nbytes += len(frame)
            full = self._buffered_nbytes > FLUSH_NBYTES
        if full:
            with self._lock:
                self._post_or_cut(0.0)

    def receive(self, timeout_s: float) -> bytes | None:
        deadline = time.monotonic() + timeout_s
        while not self._arrived:
            wait_s = max(0.0, min(deadline - time.monotonic(), MAX_WAIT_S))
            with self._lock:
                if not self._arrived:  # else a ping's answer has brought some
                    self._post_or_cut(wait_s)
            if not self._arrived and time.monotonic() >= deadline:
                return None
        return self._arrived.popleft()

    def ping(self) -> None:
        # A request that is under way is itself a question for a sign of life.
        if self._lock.acquire(blocking=False):
            try:
                self._post_or_cut(0.0)
            finally:
                self._lock.release()

    def close(self) -> None:
        self._cut = self._cut or "closed here"
        self._exchange.close()

    def post(self, wait_s: float, timeout_s: float) -> None:
        """Sends what is buffered and takes in the answer. Raises ConnectError and its kin, SessionLost."""
        with self._buffer_lock:
            frames, self._buffered, self._buffered_nbytes = self._buffered, [], 0
        path = f"{self._path}?epoch={self._epoch}&received={self._received}&wait_s={wait_s:g}"
        with self._exchange.request("POST", path, pack_frames(frames), timeout_s=timeout_s) as response:
            body = response.read(MAX_ANSWER_NBYTES + 1)
            self.peer_received = count_in(response.headers, "X-Remora-Received", self._exchange.address)
        self.heard_at = time.monotonic()
        for frame in unpack_frames(body):
            self._received = max(self._received, decode_envelope(frame).seq)
            self._arrived.append(frame)

    def _post_or_cut(self, wait_s: float) -> None:
        self._check_open()
        try:
            self.post(wait_s, wait_s + ANSWER_TIMEOUT_S)
        except (ConnectError, SessionLost, ProtocolError) as error:
            self._cut = self._cut or str(error)
            self._exchange.close()
            raise ChannelCut(self._cut) from None

    def _check_open(self) -> None:
        if self._cut is not None:
            raise ChannelCut(self._cut)


def pack_frames(frames: Sequence[bytes]) -> list[Buffer]:
    """The parts of a body that carries `frames`."""
    return [part for frame in frames for part in (_LENGTH.pack(len(frame)), frame)]


def unpack_frames(body: bytes) -> Iterator[bytes]:
    """The frames in a body. Raises ProtocolError."""
    if len(body) > MAX_ANSWER_NBYTES:
        raise ProtocolError(f"answer of more than {MAX_ANSWER_NBYTES} bytes")
    at = 0
    while at < len(body):
        if at + _LENGTH.size > len(body):
            raise ProtocolError("frame length cut short")
        (nbytes,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if nbytes > MAX_FRAME_NBYTES or at + nbytes > len(body):
            raise ProtocolError(f"frame of {nbytes} bytes in a body of {len(body)}")
        yield body[at : at + nbytes]
        at += nbytes
