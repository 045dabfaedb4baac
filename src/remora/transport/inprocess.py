"""The transport inside one process: HTTP's peer for tests and the simulator, without socket or thread."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, MutableMapping
from typing import Protocol

from blake3 import blake3

from remora.errors import ConnectError, ProtocolError, Refused
from remora.transport.exchange import flat
from remora.transport.interface import Buffer, Channel, ChannelCut
from remora.wire.messages import BlobAnswer, Grant, OpenSession, Status

NONCE = bytes(32)  # nobody listens inside a process, so one nonce does


class Port(Protocol):
    """The executor's end of one channel."""

    received: int  # highest step seq that the executor had when the channel was attached

    def step(self, frame: bytes) -> None:
        """Takes a step frame. Raises ChannelCut when another channel has taken this one's place."""

    def detach(self) -> None:
        """The client's end is gone; the session stays."""


class Endpoint(Protocol):
    """What an executor is to this transport."""

    address: str
    blobs: MutableMapping[str, Buffer]  # by blake3, hex

    def open(self, wants: OpenSession) -> Grant:
        """Raises Refused."""

    def close(self, session: str) -> None: ...

    def attach(
        self,
        session: str,
        epoch: int,
        received: int,
        reply: Callable[[bytes], None],
        cut: Callable[[str], None],
    ) -> Port:
        """Opens or resumes a session's channel, in place of an earlier one.

        Args:
            received: highest reply seq that the client has; the later ones are to be sent again.
            reply: takes a reply frame; may be called at once and from any thread.
            cut: ends the channel, with the reason.

        Raises:
            SessionLost, Refused.
        """

    def bulk(self, session: str, bulk: str) -> Buffer:
        """Raises SessionLost; KeyError if there is no such value."""

    def abandon(self, session: str, names: tuple[int, ...], reason: str) -> None: ...

    def ops(self) -> dict[str, str]: ...

    def op_schemas(self) -> dict[str, str]: ...

    def status(self) -> Status: ...


class InProcessChannel:
    """The client's end. `bytes_sent` counts frames, there being no framing."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.heard_at = time.monotonic()
        self.port: Port | None = None
        self._arrived: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # None wakes a waiting receiver
        self._cut: str | None = None

    def reply(self, frame: bytes) -> None:
        if self._cut is None:
            self._arrived.put(bytes(frame))

    def cut(self, reason: str) -> None:
        """Frames that were put in before are still received; then comes ChannelCut."""
        if self._cut is None:
            self._cut = reason
            self._arrived.put(None)

    def send(self, frame: bytes) -> None:
        if self._cut is not None:
            raise ChannelCut(self._cut)
        assert self.port is not None
        self.bytes_sent += len(frame)
        try:
            self.port.step(frame)
        except ProtocolError as error:
            self.cut(f"1008 {error}")

    def receive(self, timeout_s: float) -> bytes | None:
        try:
            frame = self._arrived.get(timeout=timeout_s) if timeout_s > 0 else self._arrived.get_nowait()
        except queue.Empty:
            return None
        if frame is None:
            self._arrived.put(None)
            raise ChannelCut(self._cut)
        self.bytes_received += len(frame)
        self.heard_at = time.monotonic()
        return frame

    def ping(self) -> None:
        if self._cut is not None:
            raise ChannelCut(self._cut)
        self.heard_at = time.monotonic()

    def close(self) -> None:
        self.cut("closed here")
        if self.port is not None:
            self.port.detach()


class InProcessTransport:
    """A transport to `endpoint`. Times out nowhere: an endpoint answers at once, or raises."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.address = endpoint.address
        self.bytes_sent = 0
        self.bytes_received = 0
        self._endpoint = endpoint
        self._open = True

    def open_session(self, wants: OpenSession, timeout_s: float) -> Grant:
        return self._reach().open(wants)

    def close_session(self, grant: Grant, timeout_s: float) -> None:
        self._reach().close(grant.session)

    def open_channel(self, grant: Grant, epoch: int, received: int, timeout_s: float) -> tuple[Channel, int]:
        channel = InProcessChannel()
        port = self._reach().attach(grant.session, epoch, received, channel.reply, channel.cut)
        channel.port = port
        return channel, port.received

    def query_blobs(self, grant: Grant, digests: tuple[str, ...]) -> BlobAnswer:
        blobs = self._reach().blobs
        return BlobAnswer(tuple(digest for digest in digests if digest in blobs), NONCE.hex())

    def prove_blobs(self, grant: Grant, proofs: dict[str, str]) -> None:
        blobs = self._reach().blobs
        for digest, proof in proofs.items():
            if digest not in blobs or blake3(blobs[digest], key=NONCE).hexdigest() != proof:
                raise Refused(f"{self.address}: no possession of blob {digest} was proven")

    def put_blob(
        self, grant: Grant, digest: str, data: memoryview, progress: Callable[[int], None] | None = None
    ) -> None:
        copy = bytes(data)
        if blake3(copy).hexdigest() != digest:
            raise Refused(f"{self.address}: the bytes sent as blob {digest} have another hash")
        self._reach().blobs[digest] = copy
        self.bytes_sent += len(copy)
        if progress and copy:
            progress(len(copy))

    def get_bulk(self, grant: Grant, bulk: str, into: memoryview) -> None:
        into = flat(into)
        try:
            source = flat(memoryview(self._reach().bulk(grant.session, bulk)))
        except KeyError:
            raise Refused(f"{self.address}: there is no value {bulk!r}") from None
        if source.nbytes != into.nbytes:
            text = f"{source.nbytes} bytes of value {bulk!r}, expected {into.nbytes}"
            raise ProtocolError(f"{self.address}: sent {text}")
        into[:] = source
        self.bytes_received += into.nbytes

    def abandon(self, grant: Grant, names: tuple[int, ...], reason: str, timeout_s: float) -> None:
        self._reach().abandon(grant.session, names, reason)

    def op_table(self, timeout_s: float) -> dict[str, str]:
        return self._reach().ops()

    def op_schemas(self, timeout_s: float) -> dict[str, str]:
        return self._reach().op_schemas()

    def status(self, timeout_s: float) -> Status:
        return self._reach().status()

    def close(self) -> None:
        self._open = False

    def _reach(self) -> Endpoint:
        if not self._open:
            raise ConnectError(f"{self.address}: this transport was closed")
        return self._endpoint
