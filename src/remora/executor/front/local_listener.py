"""Listens, in the front's private folder, to executors of this host that bring values; see local_frames.py."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from remora.errors import ProtocolError
from remora.executor.front.arrivals import Reception
from remora.executor.front.carrier import proof_of
from remora.executor.front.front import Front
from remora.executor.front.local_frames import (
    SOCKET,
    STILL_S,
    VERSION,
    Answer,
    Came,
    Conversation,
    Declined,
    Give,
    Hello,
    Proven,
    Still,
    fits,
    same_user,
)
from remora.executor.front.receiving import Receiving
from remora.executor.front.refusal import Refuse

log = logging.getLogger("remora.front")

MAX_CONNECTIONS = 512
HELLO_S = 5.0
_AT_ONCE_NBYTES = 1 << 18  # is read on the event loop


@asynccontextmanager
async def listening_here(front: Front, receiving: Receiving) -> AsyncIterator[None]:
    """Answers executors of this host, where the operator wants it and the system can."""
    path = front.folder / SOCKET
    if not front.options.same_host or not fits(path):
        yield
        return
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(os.fspath(path))
        listener.listen(64)
        accepting = asyncio.create_task(_Listener(front, receiving).run(listener))
        front.listens_here = True
        try:
            yield
        finally:
            front.listens_here = False
            accepting.cancel()
            with suppress(asyncio.CancelledError):
                await accepting


class _Listener:
    def __init__(self, front: Front, receiving: Receiving) -> None:
        self._front, self._receiving = front, receiving
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, listener: socket.socket) -> None:
        try:
            while True:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                connection.setblocking(False)
                if len(self._tasks) >= MAX_CONNECTIONS or not same_user(connection):
                    connection.close()
                    continue
                task = asyncio.create_task(self._serve(connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, connection: socket.socket) -> None:
        """One connection, which is for one session."""
        with connection:
            conversation = Conversation(connection)
            try:
                async with asyncio.timeout(HELLO_S):
                    hello = await conversation.question()
                if not isinstance(hello, Hello):
                    return
                answer = self._prove(hello)
                conversation.answer(answer)
                while isinstance(answer, Proven) and (question := await conversation.question()) is not None:
                    if not isinstance(question, Give):
                        return
                    conversation.answer(await self._work(conversation, hello.session, question))
                    conversation.drop_file()
            except (OSError, ProtocolError):  # it went away, or speaks nonsense: nobody reads an answer
                return
            except Exception:
                log.exception("a bug in the front, with an executor of this host")
            finally:
                conversation.drop_file()

    def _prove(self, hello: Hello) -> Answer:
        if hello.version != VERSION:
            return Declined(f"version {hello.version} is not spoken here, but {VERSION}", elsewhere=True)
        try:
            session = self._front.table.find_for_push(hello.session, None)
        except Refuse as refusal:
            return Declined(refusal.message, elsewhere=True)
        about = self._front.about
        return Proven(proof_of(session.push_secret, hello.nonce), about.exports if about else "")

    async def _work(self, conversation: Conversation, session: str, give: Give) -> Answer:
        """The answer to a parcel; while it is made, the other end is told that it will come."""
        working = asyncio.create_task(self._take(conversation, session, give))
        listens = True
        try:
            while not working.done():
                await asyncio.wait([working], timeout=STILL_S)
                if not working.done() and listens:
                    try:
                        conversation.answer(Still())
                    except OSError:  # what has begun is finished all the same: a second try asks how it ended
                        listens = False
            return working.result()
        finally:
            if not working.done():
                working.cancel()
                await asyncio.wait([working])

    async def _take(self, conversation: Conversation, id: str, give: Give) -> Answer:
        try:
            session = self._front.table.find_for_push(id, give.secret)
            if give.handle:
                cannot = await self._receiving.open(session, give.head, give.nbytes, give.handle)
                return Declined(cannot, elsewhere=True) if cannot else Came()
            file = conversation.file
            if give.nbytes and not give.data:
                _check(file, give.nbytes)
            elif len(give.data) != give.nbytes:
                return Declined(f"{len(give.data)} bytes of {give.nbytes}", elsewhere=False)

            async def fill(reception: Reception, views: list[memoryview]) -> None:
                if give.data or not give.nbytes:
                    _spread(give.data, views)
                elif give.nbytes <= _AT_ONCE_NBYTES:
                    _read(file, views)
                else:
                    await _read_on_thread(file, views)

            await self._receiving.take(session, give.head, give.nbytes, fill)
            return Came()
        except Refuse as refusal:
            return Declined(refusal.message, elsewhere=False)
        except ProtocolError as error:
            return Declined(str(error), elsewhere=False)


async def _read_on_thread(file: int | None, views: list[memoryview]) -> None:
    reading = asyncio.get_running_loop().run_in_executor(None, _read, file, views)
    try:
        await asyncio.shield(reading)
    finally:
        await asyncio.wait([reading])  # the thread writes no more


def _check(file: int | None, nbytes: int) -> None:
    """Raises ProtocolError: this is no file in which a body lies."""
    if file is None:
        raise ProtocolError("a parcel without its body")
    about = os.fstat(file)
    if not stat.S_ISREG(about.st_mode) or about.st_size < nbytes:
        raise ProtocolError(f"a body of {nbytes} bytes in a file of {about.st_size}")


def _spread(data: bytes, views: list[memoryview]) -> None:
    at = 0
    for view in views:
        view[:] = data[at : at + len(view)]
        at += len(view)


def _read(file: int | None, views: list[memoryview]) -> None:
    """Reads, rather than maps: a file that is cut short meanwhile is an error and not a signal."""
    assert file is not None
    at = 0
    for view in views:
        left = view
        while left:
            got = os.preadv(file, [left], at)
            if not got:
                raise ProtocolError("the file of a body was cut short")
            at, left = at + got, left[got:]
