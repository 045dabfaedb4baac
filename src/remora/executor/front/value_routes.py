"""The routes that other executors use: a session's push secret opens them, and nothing else does."""

from __future__ import annotations

import asyncio

from aiohttp import ClientError, web

from remora.executor.buffers import Buffers
from remora.executor.front.arrivals import MAX_UNTAKEN, Reception, fits_packet
from remora.executor.front.blobs import MAX_UPLOADS
from remora.executor.front.carrier import PROOF_HEADER, PUSH_SECRET_HEADER, proof_of
from remora.executor.front.front import Front
from remora.executor.front.intake import IntakePool
from remora.executor.front.refusal import Refuse
from remora.executor.front.request import json_body, length_of, number
from remora.executor.front.sessions import Session
from remora.executor.hop import Kind
from remora.wire.limits import MAX_BLOB_NBYTES, MAX_PARCEL_HEADER_NBYTES
from remora.wire.messages import Abandon
from remora.wire.parcel import Parcel, decode_parcel

VALUES = "/v1/sessions/{session}/values"
ABANDON = "/v1/sessions/{session}/abandon"
_MAX_NONCE_CHARS = 64


class ValueRoutes:
    def __init__(self, front: Front) -> None:
        self._front = front
        self._intakes = IntakePool()

    def _session(self, request: web.Request) -> Session:
        secret = request.headers.get(PUSH_SECRET_HEADER, "")
        return self._front.table.find_for_push(request.match_info["session"], secret)

    async def prove(self, request: web.Request) -> web.Response:
        """Answers whether this is the executor that granted the push secret, without being told the secret."""
        session = self._front.table.find_for_push(request.match_info["session"], None)
        nonce = request.query.get("nonce", "")
        if not 16 <= len(nonce) <= _MAX_NONCE_CHARS or not nonce.isascii():
            raise Refuse("protocol", f"a nonce has 16 to {_MAX_NONCE_CHARS} characters")
        return web.Response(headers={PROOF_HEADER: proof_of(session.push_secret, nonce)})

    async def abandon(self, request: web.Request) -> web.Response:
        session = self._session(request)
        asked = await json_body(request, Abandon)
        if len(asked.names) % 3:
            raise Refuse("protocol", f"{len(asked.names)} numbers do not form groups of 3")
        self._alive(session)
        self._front.send(Kind.ABANDON, session, asked)
        return web.Response(status=204)

    async def take(self, request: web.Request) -> web.Response:
        front, session = self._front, self._session(request)
        head_nbytes = number(request, "header")
        nbytes = length_of(request, MAX_BLOB_NBYTES) - head_nbytes
        if not 0 < head_nbytes <= MAX_PARCEL_HEADER_NBYTES or nbytes < 0:
            raise Refuse("protocol", f"a head of {head_nbytes} bytes; it has 1 to {MAX_PARCEL_HEADER_NBYTES}")
        try:
            head = await request.content.readexactly(head_nbytes)
        except (ClientError, ConnectionError, asyncio.IncompleteReadError):
            return web.Response(status=400)  # to nobody
        parcel = decode_parcel(head, nbytes)
        key = session.number, parcel.push
        while (older := front.receptions.get(key)) is not None:
            await older.stop()
        self._alive(session)
        if parcel.push in session.arrived:  # the answer was lost, not the bytes
            return web.Response(status=204)
        reception = front.receptions[key] = Reception(parcel)
        try:
            await self._receive(request, session, head, reception, nbytes)
        except (ClientError, ConnectionError):
            return web.Response(status=400)  # to nobody
        finally:
            del front.receptions[key]
            reception.over.set()
        return web.Response(status=204)

    async def _receive(
        self, request: web.Request, session: Session, head: bytes, reception: Reception, nbytes: int
    ) -> None:
        front, parcel = self._front, reception.parcel
        worker = front.workers.of_tenant[session.tenant]
        if not fits_packet(parcel):  # else it is admitted by the worker alone, as a Put is
            await self._room(session)
            self._reserve(session, parcel, worker.arrivals.buffers)
        handed_over = False
        try:
            views = await reception.prepare(worker.arrivals)
            intake = self._intakes.intake(request, nbytes)
            if intake is not None:
                await reception.receive(intake, views)
            else:
                await reception.feed(request.content, views)
            if worker.link.full:
                await worker.link.writable()
            self._alive(session)
            front.send(Kind.ARRIVAL, session, reception.hand_over(head, worker.arrivals))
            handed_over = True
            session.note_arrival(parcel.push)
            front.count(session, arrivals=1, peer_bytes_in=len(head) + nbytes)
        finally:
            if not handed_over:
                reception.drop(worker.arrivals, front.now())
                front.taken(session, parcel.push)

    async def _room(self, session: Session) -> None:
        """Waits while the worker has many parcels to take already."""
        front = self._front
        while len(front.untaken[session.number]) >= MAX_UNTAKEN:
            front.took.clear()
            await front.took.wait()
            self._alive(session)

    def _reserve(self, session: Session, parcel: Parcel, buffers: Buffers) -> None:
        """Until the worker counts the values itself. Raises Refuse: there is no memory."""
        front, push = self._front, f"push {parcel.push}"
        memory, most = front.memory(session.tenant), MAX_UPLOADS + MAX_UNTAKEN
        if memory.folder_free_nbytes < 2 * parcel.nbytes:
            buffers.drop_spare()
            memory = front.memory(session.tenant)
        gone = front.blobs.reserve(session.number, session.principal, push, parcel.nbytes, memory, most)
        front.unlink(gone)
        front.untaken[session.number].add(parcel.push)

    def _alive(self, session: Session) -> None:
        """To be asked after every await: the session may have ended meanwhile."""
        if session.number not in self._front.table.by_number:
            raise Refuse("session", f"session {session.id} is over")
