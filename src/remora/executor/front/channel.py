"""One connection of a session, as its stream sees it: somewhere to put frames, and a way to hang up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from aiohttp import web

REPLACED = 4001  # close code: a newer connection of the session took over
HANG_UP_S = 2.0


class Channel:
    """Plain-POST mode: the frames stay in the session's stream, a waiting request is only woken."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.closing: tuple[int, str] | None = None

    def push(self, frame: bytes) -> None:
        self.wake.set()

    def close(self, code: int, reason: str) -> None:
        self.closing = (code, reason)
        self.wake.set()


class SocketChannel(Channel):
    """A WebSocket: `pump` sends the frames, in order, from one task."""

    def __init__(self, frames: Iterable[bytes], transport: asyncio.Transport | None) -> None:
        super().__init__()
        self._frames = deque(frames)
        self._transport = transport
        self.wake.set()

    def push(self, frame: bytes) -> None:
        self._frames.append(frame)
        self.wake.set()

    def close(self, code: int, reason: str) -> None:
        """Sends what is queued, then hangs up; a peer that does not read is cut off."""
        if code == REPLACED:
            self._frames.clear()  # the newer connection sends them
        super().close(code, reason)
        if self._transport is not None:
            asyncio.get_running_loop().call_later(HANG_UP_S, self._transport.abort)

    async def pump(self, socket: web.WebSocketResponse) -> None:
        with suppress(ConnectionError):  # the reading side notices, too, and ends the connection
            while True:
                await self.wake.wait()
                self.wake.clear()
                while self._frames:
                    await socket.send_bytes(self._frames.popleft())
                if self.closing is not None:
                    code, reason = self.closing
                    await socket.close(code=code, message=reason.encode()[:120])
                    return
