"""The transport to an executor that is not there: it takes everything, does nothing, and says that it has it.

What would go over the wire is really written and counted. Nobody answers, so who uses it asks nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from remora.errors import Refused
from remora.transport.interface import Channel
from remora.transport.stream import Stream
from remora.wire.codec import decode_envelope
from remora.wire.messages import BlobAnswer, Grant, OpenSession, Status

NONCE = bytes(32)


class AbsentChannel:
    """Acknowledges every frame. `bytes_sent` counts frames, there being no framing."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.heard_at = time.monotonic()
        self._stream = Stream()

    def send(self, frame: bytes) -> None:
        self.bytes_sent += len(frame)
        self._stream.receive(decode_envelope(frame))

    def receive(self, timeout_s: float) -> bytes | None:
        """An acknowledgement, where one is owed."""
        if self._stream.told == self._stream.received:
            return None
        self.ping()
        return self._stream.ack_frame()

    def ping(self) -> None:
        self.heard_at = time.monotonic()

    def close(self) -> None:
        pass


class AbsentTransport:
    """An executor that would grant `grant`. Bulk bytes are counted and dropped."""

    def __init__(self, address: str, grant: Grant) -> None:
        self.address = address
        self.grant = grant
        self.bytes_sent = 0
        self.bytes_received = 0

    def open_session(self, wants: OpenSession, timeout_s: float) -> Grant:
        return self.grant

    def close_session(self, grant: Grant, timeout_s: float) -> None:
        pass

    def open_channel(self, grant: Grant, epoch: int, received: int, timeout_s: float) -> tuple[Channel, int]:
        return AbsentChannel(), 0

    def query_blobs(self, grant: Grant, digests: tuple[str, ...]) -> BlobAnswer:
        return BlobAnswer((), NONCE.hex())

    def prove_blobs(self, grant: Grant, proofs: dict[str, str]) -> None:
        raise self._nothing("blobs")

    def put_blob(
        self, grant: Grant, digest: str, data: memoryview, progress: Callable[[int], None] | None = None
    ) -> None:
        self.bytes_sent += data.nbytes

    def get_bulk(self, grant: Grant, bulk: str, into: memoryview) -> None:
        raise self._nothing("values")

    def abandon(self, grant: Grant, names: tuple[int, ...], reason: str, timeout_s: float) -> None:
        pass

    def op_table(self, timeout_s: float) -> dict[str, str]:
        return {}

    def op_schemas(self, timeout_s: float) -> dict[str, str]:
        return {}

    def status(self, timeout_s: float) -> Status:
        raise self._nothing("status")

    def close(self) -> None:
        pass

    def _nothing(self, what: str) -> Refused:
        return Refused(f"{self.address}: an executor that is not there has no {what}")
