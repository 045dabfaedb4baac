"""The routes that other executors use: a session's push secret opens them, and nothing else does."""

from __future__ import annotations

import asyncio

from aiohttp import ClientError, web

from remora.executor.front.arrivals import Reception
from remora.executor.front.carrier import HERE_HEADER, PROOF_HEADER, PUSH_SECRET_HEADER, proof_of
from remora.executor.front.front import Front
from remora.executor.front.intake import IntakePool
from remora.executor.front.receiving import Receiving
from remora.executor.front.refusal import Refuse
from remora.executor.front.request import json_body, length_of, number
from remora.executor.front.sessions import Session
from remora.executor.hop import Kind
from remora.wire.limits import MAX_BLOB_NBYTES, MAX_PARCEL_HEADER_NBYTES
from remora.wire.messages import Abandon

VALUES = "/v1/sessions/{session}/values"
ABANDON = "/v1/sessions/{session}/abandon"
_MAX_NONCE_CHARS = 64


class ValueRoutes:
    def __init__(self, front: Front, receiving: Receiving) -> None:
        self._front, self._receiving = front, receiving
        self._intakes = IntakePool()

    def _session(self, request: web.Request) -> Session:
        secret = request.headers.get(PUSH_SECRET_HEADER, "")
        return self._front.table.find_for_push(request.match_info["session"], secret)

    async def prove(self, request: web.Request) -> web.Response:
        """Answers whether this is the executor that granted the push secret, without being told the secret.

        Who tells it learns where executors of this host find another way.
        """
        told = PUSH_SECRET_HEADER in request.headers
        session = (
            self._session(request)
            if told
            else self._front.table.find_for_push(request.match_info["session"], None)
        )
        nonce = request.query.get("nonce", "")
        if not 16 <= len(nonce) <= _MAX_NONCE_CHARS or not nonce.isascii():
            raise Refuse("protocol", f"a nonce has 16 to {_MAX_NONCE_CHARS} characters")
        headers = {PROOF_HEADER: proof_of(session.push_secret, nonce)}
        if told and self._front.listens_here:
            headers[HERE_HEADER] = self._front.folder.name
        return web.Response(headers=headers)

    async def abandon(self, request: web.Request) -> web.Response:
        session = self._session(request)
        asked = await json_body(request, Abandon)
        if len(asked.names) % 3:
            raise Refuse("protocol", f"{len(asked.names)} numbers do not form groups of 3")
        self._receiving.alive(session)
        self._front.send(Kind.ABANDON, session, asked)
        return web.Response(status=204)

    async def take(self, request: web.Request) -> web.Response:
        session = self._session(request)
        head_nbytes = number(request, "header")
        nbytes = length_of(request, MAX_BLOB_NBYTES) - head_nbytes
        if not 0 < head_nbytes <= MAX_PARCEL_HEADER_NBYTES or nbytes < 0:
            raise Refuse("protocol", f"a head of {head_nbytes} bytes; it has 1 to {MAX_PARCEL_HEADER_NBYTES}")
        try:
            head = await request.content.readexactly(head_nbytes)
        except (ClientError, ConnectionError, asyncio.IncompleteReadError):
            return web.Response(status=400)  # to nobody

        async def fill(reception: Reception, views: list[memoryview]) -> None:
            intake = self._intakes.intake(request, nbytes)
            if intake is not None:
                await reception.receive(intake, views)
            else:
                await reception.feed(request.content, views)

        try:
            await self._receiving.take(session, head, nbytes, fill)
        except (ClientError, ConnectionError):
            return web.Response(status=400)  # to nobody
        return web.Response(status=204)
