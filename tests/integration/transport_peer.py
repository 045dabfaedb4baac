"""A small executor front for the transport tests: the routes of docs, blobs in a dict, steps echoed."""

from __future__ import annotations

import asyncio
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from remora.wire.codec import decode_envelope
from remora.wire.limits import MAX_FRAME_NBYTES
from remora.wire.messages import BlobAnswer, BlobProof, BlobQuery, Grant, OpenSession, Refusal, Status

GRANT = Grant("s1", "secret", 1, "peer", 1, "2.13", "cpu", "0" * 64, 900.0, 1 << 30, 64, 1 << 20, "me")
STATUS = Status("peer", "0.1", 1, "2.13", "cpu", 1.0, 1 << 30, 0, 0, 1, {})
WANTS = OpenSession(1, 1, "2.13")


def json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


class Peer:
    """What the server holds, and how it is to misbehave."""

    def __init__(self) -> None:
        self.token: str | None = None
        self.blobs: dict[str, bytearray] = {}
        self.bulk: dict[str, bytes] = {}
        self.proofs: dict[str, str] = {}
        self.frames: list[bytes] = []
        self.cut_put_after: list[int] = []  # each PUT in turn is cut after so many bytes
        self.cut_get_after: list[int] = []
        self.refuse_put: Refusal | None = None
        self.redirect = False
        self.received = 0
        self.requests: list[str] = []
        self.connections: set[Any] = set()
        self.on_frame = "echo"
        self.url = ""

    def routes(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 40)
        session = "/v1/sessions/{session}"
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/ops", self._ops),
                web.post("/v1/sessions", self._open_session),
                web.delete(session, self._close_session),
                web.get(session + "/steps", self._steps),
                web.post(session + "/steps", self._post_steps),
                web.post(session + "/blobs/query", self._query),
                web.post(session + "/blobs/prove", self._prove),
                web.put(session + "/blobs/{digest}", self._put),
                web.head(session + "/blobs/{digest}", self._held),
                web.get(session + "/bulk/{bulk}", self._get_bulk),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.redirect:
            raise web.HTTPFound("http://elsewhere/")
        self.requests.append(f"{request.method} {request.path_qs}")
        self.connections.add(request.transport.get_extra_info("peername"))  # type: ignore[union-attr]
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return json(Refusal("auth", "wrong token"), 401)
        session = request.match_info.get("session")
        if session not in (None, GRANT.session) or (
            session and request.headers.get("X-Remora-Secret") != GRANT.secret
        ):
            return json(Refusal("session", f"session {session} is over"), 404)
        return await handler(request)

    async def _status(self, _: web.Request) -> web.Response:
        return json(STATUS)

    async def _ops(self, _: web.Request) -> web.Response:
        return json({"aten.add": "d1"})

    async def _open_session(self, request: web.Request) -> web.Response:
        wants = msgspec.json.decode(await request.read(), type=OpenSession)
        if wants.protocol != 1:
            return json(Refusal("version", "this executor speaks protocol 1"), 426)
        return json(GRANT)

    async def _close_session(self, request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def _steps(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(max_msg_size=MAX_FRAME_NBYTES + 1, compress=False)
        ws.headers["X-Remora-Received"] = str(self.received)
        await ws.prepare(request)
        async for message in ws:
            if message.type is not WSMsgType.BINARY:
                continue
            self.frames.append(message.data)
            if self.on_frame == "echo":
                await ws.send_bytes(message.data)
            elif self.on_frame == "burst":
                for i in range(10):
                    await ws.send_bytes(bytes([i]))
            elif self.on_frame == "close":
                await ws.close(code=1008, message=b"lease ended")
            elif self.on_frame == "abort":
                assert request.transport
                request.transport.abort()
            elif self.on_frame == "too much":
                await ws.send_bytes(bytes(MAX_FRAME_NBYTES + 1))
            elif self.on_frame == "text":
                await ws.send_str("hello")
        return ws

    async def _post_steps(self, request: web.Request) -> web.Response:
        body = await request.read()
        at, answer = 0, b""
        while at < len(body):
            (n,) = struct.unpack_from("<I", body, at)
            frame = body[at + 4 : at + 4 + n]
            at += 4 + n
            self.frames.append(frame)
            self.received = max(self.received, decode_envelope(frame).seq)
            answer += struct.pack("<I", n) + frame
        if not answer:
            await asyncio.sleep(float(request.query["wait_s"]))
        if self.on_frame == "broken":
            answer = struct.pack("<I", 100) + b"short"
        return web.Response(body=answer, headers={"X-Remora-Received": str(self.received)})

    async def _query(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=BlobQuery)
        return json(BlobAnswer(tuple(d for d in asked.digests if d in self.blobs), "ab" * 32))

    async def _prove(self, request: web.Request) -> web.Response:
        self.proofs.update(msgspec.json.decode(await request.read(), type=BlobProof).proofs)
        return web.Response(status=204)

    async def _put(self, request: web.Request) -> web.Response:
        blob = self.blobs.setdefault(request.match_info["digest"], bytearray())
        del blob[int(request.query.get("offset", "0")) :]
        if self.refuse_put:
            return json(self.refuse_put, 507)
        limit = self.cut_put_after.pop(0) if self.cut_put_after else None
        async for chunk in request.content.iter_any():
            blob += chunk if limit is None else chunk[: max(0, limit - len(blob))]
            if limit is not None and len(blob) >= limit:
                assert request.transport
                request.transport.abort()
                break
        return web.Response(status=204)

    async def _held(self, request: web.Request) -> web.Response:
        blob = self.blobs.get(request.match_info["digest"], b"")
        if not blob:
            return json(Refusal("blob", "never heard of it"), 404)
        return web.Response(headers={"X-Remora-Offset": str(len(blob))})

    async def _get_bulk(self, request: web.Request) -> web.StreamResponse:
        data = memoryview(self.bulk[request.match_info["bulk"]])
        start = request.http_range.start or 0
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(data) - start
        await response.prepare(request)
        if self.cut_get_after:
            await response.write(data[start : self.cut_get_after.pop(0)])
            await asyncio.sleep(0.05)
            assert request.transport
            request.transport.abort()
            return response
        for at in range(start, len(data), 1 << 20):
            await response.write(data[at : at + (1 << 20)])
        return response


@contextmanager
def serving(peer: Peer, tls: ssl.SSLContext | None = None) -> Iterator[Peer]:
    """Serves `peer` on 127.0.0.1, on a thread, until the block ends."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        runner = web.AppRunner(peer.routes(), shutdown_timeout=0.2, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        port = runner.addresses[0][1]
        peer.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert started.wait(10)
        yield peer
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
