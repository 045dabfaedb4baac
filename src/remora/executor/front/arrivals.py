"""Values that come from other executors: bodies received straight into memory that the worker maps."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import StreamReader

from remora.executor.buffers import Buffer, Buffers
from remora.executor.front.intake import Intake
from remora.executor.front.refusal import Refuse
from remora.executor.hop import Arrival
from remora.wire.limits import MAX_INLINE_NBYTES
from remora.wire.parcel import Parcel, padded

MAX_DATA_NBYTES = 1 << 20  # of small storages in one parcel, which go to the worker in a packet
MAX_UNTAKEN = 32  # parcels of a session that its worker has not taken yet; further ones wait
_AT_ONCE_NBYTES = 1 << 20  # a buffer up to here is made on the event loop


def fits_packet(parcel: Parcel) -> bool:
    """Whether all of it goes to the worker in a packet, and takes no shared memory."""
    return max(parcel.storages) <= MAX_INLINE_NBYTES and parcel.nbytes <= MAX_DATA_NBYTES


class Arrivals:
    """What came for one worker: buffers that it maps until it returns them."""

    def __init__(self, folder: Path) -> None:
        self.buffers = Buffers(folder, "arrival")
        self._lent: dict[str, Buffer] = {}

    async def buffer(self, nbytes: int) -> Buffer:
        """Raises Refuse: there is no memory."""
        found = self.buffers.take(nbytes)
        if found is not None:
            return found
        try:
            if nbytes <= _AT_ONCE_NBYTES:
                return self.buffers.create(nbytes)
            return await asyncio.to_thread(self.buffers.create, nbytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.ENOMEM):
                raise
            raise Refuse("memory", f"asked for {nbytes} bytes; the folder of values has no room") from None

    def lend(self, buffer: Buffer) -> None:
        self._lent[buffer.path] = buffer

    def returned(self, paths: tuple[str, ...], now: float) -> None:
        """The worker maps these no longer."""
        for path in paths:
            buffer = self._lent.pop(path, None)
            if buffer is not None:
                self.buffers.give_back(buffer, now)


@dataclass(eq=False)
class Reception:
    """One parcel on its way in."""

    parcel: Parcel
    buffers: list[Buffer | None] = field(default_factory=list)  # of each storage; None: in `data`
    data: bytearray = field(default_factory=bytearray)
    stopped: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _intake: Intake | None = None
    _feeding: asyncio.Task[object] | None = None

    async def prepare(self, arrivals: Arrivals) -> list[memoryview]:
        """Where the body goes, in order. Raises Refuse."""
        data_nbytes = 0
        for nbytes in self.parcel.storages:
            small = nbytes <= MAX_INLINE_NBYTES and data_nbytes + nbytes <= MAX_DATA_NBYTES
            data_nbytes += nbytes if small else 0
            self.buffers.append(None if small else await arrivals.buffer(nbytes))
        self.data = bytearray(data_nbytes)
        views, at, data = [], 0, memoryview(self.data)
        for nbytes, buffer in zip(self.parcel.storages, self.buffers, strict=True):
            if buffer is not None:
                views.append(buffer.view(nbytes))
            else:
                views.append(data[at : at + nbytes])
                at += nbytes
            views.append(memoryview(bytearray(padded(nbytes) - nbytes)))
        return views

    async def feed(self, body: StreamReader, views: list[memoryview]) -> None:
        """Raises aiohttp.ClientError, ConnectionError: it did not come whole."""
        self._feeding = asyncio.current_task()
        try:
            waiting = iter([view for view in views if view])
            view = next(waiting, memoryview(b""))
            async for chunk in body.iter_any():
                left = memoryview(chunk)
                while left:
                    n = min(len(left), len(view))
                    view[:n], view, left = left[:n], view[n:], left[n:]
                    if not view:
                        view = next(waiting, memoryview(b""))
            if view:
                raise ConnectionResetError("the body ended early")
        except asyncio.CancelledError:
            if self.stopped:
                raise ConnectionAbortedError("a second try has taken over") from None
            raise
        finally:
            self._feeding = None

    async def receive(self, intake: Intake, views: list[memoryview]) -> None:
        """As `feed`, on a thread."""
        self._intake = intake
        receiving = asyncio.get_running_loop().run_in_executor(intake.threads, intake.receive_into, views)
        try:
            await asyncio.shield(receiving)
        except asyncio.CancelledError:
            intake.stop()
            raise
        finally:
            await asyncio.wait([receiving])  # the thread writes no more
            self._intake = None
            intake.close(whole=receiving.exception() is None)

    async def stop(self) -> None:
        """Ends it, if it still goes on: a second try comes."""
        self.stopped = True
        if self._intake is not None:
            self._intake.stop()
        if self._feeding is not None:
            self._feeding.cancel()
        await self.over.wait()

    def drop(self, arrivals: Arrivals, now: float) -> None:
        """It did not come whole."""
        for buffer in self.buffers:
            if buffer is not None:
                arrivals.buffers.give_back(buffer, now)
        self.buffers = []

    def hand_over(self, head: bytes, arrivals: Arrivals) -> Arrival:
        """What the worker is told."""
        for buffer in self.buffers:
            if buffer is not None:
                arrivals.lend(buffer)
        paths = tuple(buffer.path if buffer is not None else "" for buffer in self.buffers)
        return Arrival(head, paths, bytes(self.data))
