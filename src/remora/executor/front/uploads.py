"""Files that blobs arrive in: allocated whole, written and hashed piece by piece on a worker thread."""

from __future__ import annotations

import asyncio
import errno
import hmac
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from blake3 import blake3

from remora.executor.front.intake import Intake
from remora.executor.front.refusal import Refuse

MIN_PIECE_NBYTES = 1 << 20  # when the thread is idle; what a cut loses on a slow link
MAX_PIECE_NBYTES = 4 << 20  # when it is busy
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@dataclass(eq=False)
class Upload:
    """One blob on its way. Survives a cut connection: `offset` is where the next one goes on."""

    digest: str
    nbytes: int
    path: Path
    fd: int
    offset: int = 0
    heard_at: float = 0.0  # when the last of it came, or was asked about
    hasher: blake3 = field(default_factory=blake3)
    task: asyncio.Task[object] | None = None  # of the connection that feeds it
    writing: asyncio.Future[None] | None = None  # what a thread has in hand: a piece, or an intake's body
    intake: Intake | None = None

    @classmethod
    async def create(cls, digest: str, nbytes: int, path: Path) -> Upload:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, nbytes)
            # on a disk this makes the writes fast; in shared memory it takes as long as they do
            if nbytes and not path.is_relative_to("/dev/shm"):
                await asyncio.to_thread(os.posix_fallocate, fd, 0, nbytes)
        except BaseException as error:
            os.close(fd)
            path.unlink()
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise Refuse("memory", f"asked for {nbytes} bytes; the blob folder has no room") from None
            raise
        return cls(digest, nbytes, path, fd)

    async def take_over(self) -> None:
        """Stops a connection that still feeds this upload, so that `offset` stands still."""
        if self.task is not None:
            self.task.cancel()
            self.task = None
        if self.intake is not None:
            self.intake.stop()
        if self.writing is not None:
            await asyncio.wait([self.writing])
            self.writing = None

    async def feed(self, body: aiohttp.StreamReader, heard: Callable[[], None]) -> None:
        """Writes the body to its end; while a thread writes one piece, the next one is received.

        Raises:
            aiohttp.ClientError, ConnectionError: the connection broke; another may go on at `offset`.
        """
        self.task = asyncio.current_task()
        try:
            piece: list[bytes] = []
            piece_nbytes = 0
            async for chunk in body.iter_any():
                piece.append(chunk)
                piece_nbytes += len(chunk)
                idle = self.writing is None or self.writing.done()
                if piece_nbytes >= (MIN_PIECE_NBYTES if idle else MAX_PIECE_NBYTES):
                    await self._hand_over(piece)
                    piece, piece_nbytes = [], 0
                    heard()
            await self._hand_over(piece)
            await self._written()
        finally:
            if self.task is asyncio.current_task():
                self.task = None

    async def receive(self, intake: Intake, nbytes: int, heard: Callable[[], None]) -> None:
        """As `feed`, with the threads of an intake, which also receive; `heard` is called on one of them."""

        def take(piece: memoryview) -> None:
            hashing = intake.threads.submit(self.hasher.update, piece)
            try:
                self._store(piece, self.offset)
            finally:  # the memory is used again
                hashing.result()
            self.offset += len(piece)
            heard()

        def over(receiving: asyncio.Future[None]) -> None:
            self.intake = None
            intake.close(whole=not receiving.cancelled() and receiving.exception() is None)

        self.task, self.intake = asyncio.current_task(), intake
        loop = asyncio.get_running_loop()
        self.writing = loop.run_in_executor(intake.threads, intake.receive, nbytes, take)
        self.writing.add_done_callback(over)
        try:
            await self._written()
        except asyncio.CancelledError:
            intake.stop()
            raise
        finally:
            if self.task is asyncio.current_task():
                self.task = None

    async def _hand_over(self, piece: list[bytes]) -> None:
        await self._written()
        self.writing = asyncio.get_running_loop().run_in_executor(None, self._take, piece)

    async def _written(self) -> None:
        if self.writing is not None:  # shielded: a cancelled connection must not leave a half-noted piece
            await asyncio.shield(self.writing)

    def _take(self, piece: list[bytes]) -> None:
        """One system call and one hash a piece: with the event loop busy, each return to Python is dear."""
        data = b"".join(piece)
        self._store(memoryview(data), self.offset)
        self.hasher.update(data)
        self.offset += len(data)

    def _store(self, view: memoryview, offset: int) -> None:
        while view:
            try:
                written = os.pwrite(self.fd, view, offset)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                raise Refuse("memory", f"the blob folder is full after {offset} bytes") from None
            offset += written
            view = view[written:]

    def matches(self) -> bool:
        return hmac.compare_digest(self.hasher.hexdigest(), self.digest)

    async def close(self, keep_file: bool) -> None:
        """Ends it, whoever feeds it; `keep_file`: it has become a stored blob."""
        await self.take_over()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if not keep_file:
            with suppress(FileNotFoundError):
                self.path.unlink()


def keyed_hash(path: str, nonce: bytes) -> str:
    """The proof that whoever has the file's bytes can make, and nobody else. Blocking."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return blake3(b"", key=nonce).hexdigest()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return blake3(data, key=nonce).hexdigest()
