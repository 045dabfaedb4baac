"""Uploads that wait on the client for their first use, and the bytes of those that have a place."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from remora.ir.annotated import Facts
from remora.session.holdings import Holdings, Key
from remora.session.lane import Lane
from remora.session.ledger import Ledger
from remora.wire.messages import Adopt, Put

PINNED_NBYTES = 256 << 20  # that may wait; they are copies, since the program may write on


@dataclass(frozen=True)
class Upload:
    """Bytes of the client that no executor has yet. digest: None for what is small enough to go in a message.
    nbytes: that they weigh; where nothing is computed, `data` is empty."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    digest: bytes | None
    nbytes: int


class Pinned:
    """Uploads by segment, oldest first, until they are bound to an executor."""

    def __init__(self, lanes: Sequence[Lane], holdings: Holdings, ledger: Ledger) -> None:
        self.ledger = ledger
        self.nbytes = 0
        self._lanes, self._holdings = lanes, holdings
        self._uploads: dict[int, Upload] = {}
        self._bulk: deque[tuple[Lane, int, bytes, memoryview]] = deque()

    def add(self, segment: int, upload: Upload, facts: Facts) -> None:
        self._uploads[segment] = upload
        self.nbytes += upload.nbytes
        self._holdings.uploaded((segment, 0), facts)

    @property
    def is_full(self) -> bool:
        """Whether one has to go, used or not."""
        return self.nbytes > PINNED_NBYTES

    @property
    def oldest(self) -> int:
        return next(iter(self._uploads))

    def bind(self, segment: int, executor: int) -> None:
        """Sends an upload to the executor that owns it from then on."""
        upload, lane = self._uploads.pop(segment), self._lanes[executor]
        self.ledger.uploads(segment, executor, upload.nbytes, upload.digest is not None)
        self.nbytes -= upload.nbytes
        if upload.digest is None:
            lane.post(Put(segment, upload.dtype, upload.shape, upload.data), upload.nbytes)
        else:
            self._bulk.append((lane, segment, upload.digest, memoryview(upload.data)))
            lane.say(Adopt(segment, upload.dtype, upload.shape, upload.digest))
        self._holdings.arrived((segment, 0), executor)

    def ended(self, keys: Iterable[Key]) -> None:
        """Values that the program has dropped; of these, some may still wait."""
        for segment, _ in keys if self._uploads else ():
            upload = self._uploads.pop(segment, None)
            if upload is not None:
                self.nbytes -= upload.nbytes

    @property
    def has_bulk(self) -> bool:
        """Whether bytes have to go before the messages that name them."""
        return bool(self._bulk)

    def send_bulk(self) -> None:
        """Sends the bytes of uploads that were bound. May be interrupted, and goes on then when it is called again."""
        while self._bulk:
            lane, segment, digest, data = self._bulk[0]
            sent_nbytes, started_s = lane.uploads.sent_nbytes, time.perf_counter()
            lane.link.persist(functools.partial(lane.uploads.ensure, digest, data))
            took_s = time.perf_counter() - started_s
            self.ledger.sent(segment, lane.uploads.sent_nbytes - sent_nbytes, took_s)
            lane.uploads.adopted(segment, digest)
            self._bulk.popleft()
