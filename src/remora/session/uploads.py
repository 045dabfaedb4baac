"""Large tensors to the executor: once by content, skipped when the executor proves to hold them already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from blake3 import blake3

from remora.errors import Refused
from remora.transport.interface import Transport
from remora.wire.messages import Grant

ASK_NBYTES = 32 << 20  # from here on, asking first always pays


class Uploads:
    """Content-addressed uploads of one session.

    While everything turns out to be new, bytes are sent unasked, without a round trip for the question; once
    something was there already, the rest is likely to be there too, and each is offered before it is sent.
    The executor keeps a blob for the session while a value is made of it; then it may go.
    """

    def __init__(self, transport: Transport, grant: Grant, progress: Callable[[int], None]) -> None:
        self.transport, self.grant, self.progress = transport, grant, progress
        self.sent_nbytes = 0
        self.round_trips = 0
        self._values: Counter[bytes] = Counter()  # values made of each digest that live
        self._made_of: dict[int, bytes] = {}  # by the value's segment
        self._stored: set[bytes] = set()  # was there once, and may still be
        self._nonce: bytes | None = None
        self._offer = True  # the first one finds out

    def ensure(self, digest: bytes, data: memoryview) -> None:
        """When this returns, the session may adopt `data` by its digest."""
        if digest in self._values:
            return
        again = digest in self._stored
        if (again or self._offer or data.nbytes >= ASK_NBYTES) and self._offered(digest, data):
            self._offer = True
        else:
            self._offer = again
            self.round_trips += 1
            self.transport.put_blob(self.grant, digest.hex(), data, self.progress)
            self.sent_nbytes += data.nbytes
        self._stored.add(digest)

    def adopted(self, segment: int, digest: bytes) -> None:
        """A value was made of a blob."""
        self._made_of[segment] = digest
        self._values[digest] += 1

    def freed(self, segments: Iterable[int]) -> None:
        """Values end; most are no uploads."""
        for segment in segments:
            digest = self._made_of.pop(segment, None)
            if digest is not None:
                self._values[digest] -= 1
                if not self._values[digest]:
                    del self._values[digest]

    def _offered(self, digest: bytes, data: memoryview) -> bool:
        """Whether the executor holds the bytes and accepts the proof that we do too."""
        if self._nonce is None:
            self.round_trips += 1
            answer = self.transport.query_blobs(self.grant, (digest.hex(),))
            self._nonce = bytes.fromhex(answer.nonce)
            if not answer.held:
                return False
        proof = blake3(data, key=self._nonce).hexdigest()
        self.round_trips += 1
        try:
            self.transport.prove_blobs(self.grant, {digest.hex(): proof})
        except Refused:  # not held (any more): then it is sent
            return False
        return True
