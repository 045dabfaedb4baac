"""Steps: a WebSocket a session, or plain POSTs where a proxy lets no upgrade through."""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress

from aiohttp import WSCloseCode, WSMsgType, web

from remora.errors import ProtocolError
from remora.executor.front.channel import Channel, SocketChannel
from remora.executor.front.front import Front
from remora.executor.front.refusal import Refuse
from remora.executor.front.request import RECEIVED_HEADER, body_of, number, session_of
from remora.executor.front.sessions import Session
from remora.wire.limits import MAX_FRAME_NBYTES

MAX_POST_NBYTES = 2 * MAX_FRAME_NBYTES
MAX_WAIT_S = 20.0
_LENGTH = struct.Struct("<I")


class StepRoutes:
    def __init__(self, front: Front) -> None:
        self._front = front

    # ---- WebSocket

    async def socket(self, request: web.Request) -> web.StreamResponse:
        front = self._front
        session = session_of(front, request)
        epoch, received = number(request, "epoch"), number(request, "received")
        session.check_epoch(epoch, same_allowed=False)
        socket = web.WebSocketResponse(
            timeout=1.0, autoping=False, compress=False, max_msg_size=MAX_FRAME_NBYTES + 1
        )
        if not socket.can_prepare(request):
            raise Refuse("protocol", "this route is a WebSocket; without upgrades, POST the frames")
        # From here to attach nothing awaits: no reply can slip in between what is resent and what follows.
        channel = SocketChannel(session.stream.resume(received), request.transport)
        front.attach(session, epoch, channel)
        socket.headers[RECEIVED_HEADER] = str(session.stream.received)
        pump = None
        try:
            await socket.prepare(request)
            pump = asyncio.create_task(channel.pump(socket))
            await self._listen(socket, session, channel)
        finally:
            front.detach(session, channel)
            if pump is not None:
                if channel.closing is None:
                    pump.cancel()
                with suppress(asyncio.CancelledError):
                    await pump
        return socket

    async def _listen(self, socket: web.WebSocketResponse, session: Session, channel: SocketChannel) -> None:
        front = self._front
        while True:
            message = await socket.receive()
            if channel.closing is not None or front.channels.get(session.number) is not channel:
                return
            if message.type is WSMsgType.BINARY:
                try:
                    await front.take(session, message.data)
                except ProtocolError as error:
                    channel.close(WSCloseCode.POLICY_VIOLATION, str(error))
                    return
                if session.stream.ack_due:
                    channel.push(session.stream.ack_frame())
            elif message.type is WSMsgType.PING:
                session.renew(front.now())
                await socket.pong(message.data)
            elif message.type is WSMsgType.PONG:
                session.renew(front.now())
            elif message.type is WSMsgType.TEXT:
                channel.close(WSCloseCode.POLICY_VIOLATION, "steps are binary frames")
                return
            else:  # closed, by the peer or by aiohttp for a breach of the WebSocket protocol
                return

    # ---- plain POST

    async def post(self, request: web.Request) -> web.Response:
        front = self._front
        session = session_of(front, request)
        epoch, received = number(request, "epoch"), number(request, "received")
        wait_s = min(_seconds(request, "wait_s"), MAX_WAIT_S)
        frames = _split(await body_of(request, MAX_POST_NBYTES))
        channel = self._join(session, epoch)
        for frame in frames:
            await front.take(session, frame)
        answer = session.stream.resume(received)
        if not answer and wait_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(channel.wake.wait(), wait_s)
            session.renew(front.now())
            answer = session.stream.resume(received)
        if not answer and session.stream.ack_due:
            answer = [session.stream.ack_frame()]
        return web.Response(
            body=b"".join(_LENGTH.pack(len(frame)) + frame for frame in _fitting(answer)),
            headers={RECEIVED_HEADER: str(session.stream.received)},
            content_type="application/octet-stream",
        )

    def _join(self, session: Session, epoch: int) -> Channel:
        """Requests of one epoch share a connection; the newest waits, older ones are let go."""
        session.check_epoch(epoch, same_allowed=True)
        current = self._front.channels.get(session.number)
        if epoch == session.epoch and isinstance(current, SocketChannel):
            raise Refuse("protocol", f"epoch {epoch} belongs to a WebSocket; take the next one")
        if session.number not in self._front.table.by_number:  # ended while the body came in
            raise Refuse("session", f"session {session.id} is over")
        channel = Channel()
        self._front.attach(session, epoch, channel)
        return channel


def _seconds(request: web.Request, name: str) -> float:
    text = request.query.get(name, "0")
    try:
        seconds = float(text)
    except ValueError:
        raise Refuse("protocol", f"{name}={text!r} in the query; seconds are needed") from None
    return seconds if seconds > 0 else 0.0  # NaN too


def _split(body: bytes) -> list[bytes]:
    """Frames of a body, each after its length."""
    frames = []
    position = 0
    while position < len(body):
        start = position + _LENGTH.size
        if start > len(body):
            raise ProtocolError("the body ends inside a frame's length")
        position = start + _LENGTH.unpack_from(body, start - _LENGTH.size)[0]
        if position > len(body):
            raise ProtocolError("the body ends inside a frame")
        frames.append(body[start:position])
    return frames


def _fitting(frames: list[bytes]) -> list[bytes]:
    """As many of the frames as one answer may hold, at least one; the client asks for the rest."""
    nbytes = 0
    for count, frame in enumerate(frames):
        nbytes += len(frame)
        if count and nbytes > MAX_POST_NBYTES:
            return frames[:count]
    return frames
