"""Takes a body past the event loop: the rest of it is received on a thread, straight from the socket.

aiohttp's way costs 0.5 s of processor a GB and the event loop's attention. Here, once the head is parsed, the
transport is paused, what is buffered is taken out, and a thread reads on through a copy of the descriptor.
aiohttp's parser then still waits for that body, so it is replaced by a new one, and the connection lives on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from aiohttp import web
from aiohttp.http import HttpRequestParser
from aiohttp.web_protocol import RequestPayloadError

MIN_NBYTES = 1 << 20  # smaller bodies are through before a thread has started
MAX_INTAKES = 8  # at once; further bodies go through the event loop
STALL_S = 60.0  # longer than clients wait; a sender that is silent for so long is gone
PIECE_NBYTES = 1 << 20  # stays in the cache between the socket, the hash and the file
_PARSER_LIMIT_NBYTES = 1 << 20


class Intake:
    """The rest of one body. Everything but `receive` is called on the event loop."""

    def __init__(self, request: web.Request, transport: asyncio.Transport, pool: IntakePool) -> None:
        fd = transport.get_extra_info("socket").fileno()
        self._socket = socket.socket(fileno=os.dup(fd))
        self._socket.settimeout(STALL_S)
        self._request = request
        self._transport = transport
        self._pool = pool
        self.threads = pool.threads
        try:  # nothing awaits between the two: no byte can come between
            self._early = request.content.read_nowait()
            transport.pause_reading()
        except BaseException:
            self._socket.close()
            raise
        self._buffer = pool.spare.pop() or bytearray(PIECE_NBYTES)

    def receive(self, nbytes: int, take: Callable[[memoryview], None]) -> None:
        """Blocking: gives `take` all `nbytes`, in pieces whose memory is used again.

        Raises:
            ConnectionError: they do not all come; `take` got those that did.
        """
        if self._early:
            take(memoryview(self._early))
        nbytes -= len(self._early)
        view = memoryview(self._buffer)
        while nbytes:
            got = 0
            try:
                while got < min(nbytes, PIECE_NBYTES):
                    n = self._socket.recv_into(view[got : min(nbytes, PIECE_NBYTES)])
                    if not n:
                        raise ConnectionResetError("the body ended early")
                    got += n
            except TimeoutError:
                raise ConnectionAbortedError(f"nothing came for {STALL_S:g} s") from None
            finally:
                if got:
                    take(view[:got])
            nbytes -= got

    def receive_into(self, views: list[memoryview]) -> None:
        """As `receive`, straight into memory, one view after another."""
        early = memoryview(self._early)
        for view in views:
            n = min(len(early), len(view))
            view[:n], early, left = early[:n], early[n:], view[n:]
            try:
                while left:
                    got = self._socket.recv_into(left)
                    if not got:
                        raise ConnectionResetError("the body ended early")
                    left = left[got:]
            except TimeoutError:
                raise ConnectionAbortedError(f"nothing came for {STALL_S:g} s") from None

    def stop(self) -> None:
        """Cuts the connection, which ends `receive`. May come at any time, also after `close`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self, whole: bool) -> None:
        """To be called once `receive` has returned. `whole`: the body is through; the next request may come."""
        self._socket.close()
        self._pool.spare.append(self._buffer)
        protocol: Any = self._request.protocol
        if whole and not self._request.content.is_eof() and protocol.transport is not None:
            protocol._parser = _parser(protocol)
            self._request.content.feed_eof()
        with suppress(RuntimeError):  # it is closed
            self._transport.resume_reading()


class IntakePool:
    """Buffers and threads for a bounded number of intakes."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(2 * MAX_INTAKES, "remora-intake")  # one receives, one hashes
        self.spare = [bytearray() for _ in range(MAX_INTAKES)]

    def intake(self, request: web.Request, length: int) -> Intake | None:
        """None, with the body untouched, if it is small or encrypted, or too many are under way.

        Raises:
            aiohttp.ClientError: the connection is broken already.
        """
        transport = request.transport
        if length < MIN_NBYTES or transport is None or not self.spare or sys.platform == "win32":
            return None
        if transport.get_extra_info("sslcontext") is not None or not hasattr(request.protocol, "_parser"):
            return None
        return Intake(request, transport, self)


def _parser(protocol: Any) -> Any:
    return HttpRequestParser(
        protocol,
        asyncio.get_running_loop(),
        _PARSER_LIMIT_NBYTES,
        payload_exception=RequestPayloadError,
        auto_decompress=False,
    )
