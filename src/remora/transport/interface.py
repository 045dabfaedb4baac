"""The interface that every transport obeys: a channel for frames, and bulk routes for bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from remora.wire.messages import BlobAnswer, Grant, OpenSession, Status

Buffer = bytes | bytearray | memoryview


class ChannelCut(ConnectionError):
    """The channel is broken; the session may resume on a new one."""


class Channel(Protocol):
    """Ordered frames both ways over one connection. Blocking, on the caller's thread."""

    bytes_sent: int  # at the socket, protocol framing included
    bytes_received: int

    def send(self, frame: bytes) -> None:
        """Queues or sends one frame. Raises ChannelCut."""

    def receive(self, timeout_s: float) -> bytes | None:
        """The next frame, or None after `timeout_s` of silence (0: whatever is already there).

        Raises ChannelCut when the peer closed or the link broke.
        """

    def ping(self) -> None:
        """Asks the peer for a sign of life; any answer counts in `heard_at`. Raises ChannelCut."""

    heard_at: float  # time.monotonic() of the last byte received

    def close(self) -> None: ...


class Transport(Protocol):
    """One executor's address, reached one way."""

    address: str
    bytes_sent: int  # of the bulk and control routes; a channel counts its own
    bytes_received: int

    def open_session(self, wants: OpenSession, timeout_s: float) -> Grant: ...

    def close_session(self, grant: Grant, timeout_s: float) -> None: ...

    def open_channel(self, grant: Grant, epoch: int, received: int, timeout_s: float) -> tuple[Channel, int]:
        """Opens or resumes the session's channel. `received`: highest reply seq already here.

        Returns the channel and the highest step seq that the executor already has.
        Raises ConnectError (may be tried again), Refused, AuthError, SessionLost (final).
        """

    def query_blobs(self, grant: Grant, digests: tuple[str, ...]) -> BlobAnswer: ...

    def prove_blobs(self, grant: Grant, proofs: dict[str, str]) -> None: ...

    def put_blob(
        self, grant: Grant, digest: str, data: memoryview, progress: Callable[[int], None] | None = None
    ) -> None:
        """Streams one blob; returns when the executor has verified it."""

    def get_bulk(self, grant: Grant, bulk: str, into: memoryview) -> None:
        """Reads a large value's bytes into `into`, whole."""

    def abandon(self, grant: Grant, names: tuple[int, ...], reason: str, timeout_s: float) -> None:
        """Tells the session, ahead of its steps, that pushed values will not come: groups (segment, row, out)."""

    def op_table(self, timeout_s: float) -> dict[str, str]:
        """Digest of each op's schema that the executor allows."""

    def op_schemas(self, timeout_s: float) -> dict[str, str]:
        """The schemas themselves, as text: half a megabyte, for a client whose PyTorch is another version."""

    def status(self, timeout_s: float) -> Status: ...

    def close(self) -> None: ...
