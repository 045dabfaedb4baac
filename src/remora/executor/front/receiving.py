"""What other executors send to a front's sessions, whatever brings it: checked, reserved, received, handed over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from remora.executor.buffers import Buffers
from remora.executor.front.arrivals import MAX_UNTAKEN, Reception, fits_packet
from remora.executor.front.blobs import MAX_UPLOADS
from remora.executor.front.front import Front
from remora.executor.front.refusal import Refuse
from remora.executor.front.sessions import Session
from remora.executor.hop import Arrival, Kind
from remora.wire.parcel import Parcel, decode_parcel

Fill = Callable[[Reception, list[memoryview]], Awaitable[None]]


class Receiving:
    """All parcels of a front. A push that came before is not acted on again."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def take(self, session: Session, head: bytes, nbytes: int, fill: Fill) -> None:
        """Receives a parcel. fill: writes its body, all of it, or raises.

        Raises:
            Refuse, ProtocolError: it is not taken.
        """
        parcel = decode_parcel(head, nbytes)
        reception = await self._begin(session, parcel)
        if reception is None:
            return
        try:
            await self._receive(session, head, reception, fill)
        finally:
            self._end(session, reception)

    async def open(self, session: Session, head: bytes, nbytes: int, handle: bytes) -> str:
        """Has the worker copy a parcel's body out of device memory; returns why that cannot be, or nothing.

        Raises:
            Refuse, ProtocolError: it is not taken.
        """
        parcel = decode_parcel(head, nbytes)
        reception = await self._begin(session, parcel)
        if reception is None:
            return ""
        try:
            return await self._open(session, head, reception, handle)
        finally:
            self._end(session, reception)

    async def _begin(self, session: Session, parcel: Parcel) -> Reception | None:
        """None: the answer to it was lost, not the bytes."""
        front, key = self._front, (session.number, parcel.push)
        while (older := front.receptions.get(key)) is not None:
            await older.stop()
        self.alive(session)
        if parcel.push in session.arrived:
            return None
        reception = front.receptions[key] = Reception(parcel)
        return reception

    def _end(self, session: Session, reception: Reception) -> None:
        del self._front.receptions[session.number, reception.parcel.push]
        reception.over.set()

    async def _receive(self, session: Session, head: bytes, reception: Reception, fill: Fill) -> None:
        front, parcel = self._front, reception.parcel
        worker = front.workers.of_tenant[session.tenant]
        if not fits_packet(parcel):  # else it is admitted by the worker alone, as a Put is
            await self._room(session)
            self._reserve(session, parcel, worker.arrivals.buffers)
        handed_over = False
        try:
            await fill(reception, await reception.prepare(worker.arrivals))
            if worker.link.full:
                await worker.link.writable()
            self.alive(session)
            front.send(Kind.ARRIVAL, session, reception.hand_over(head, worker.arrivals))
            handed_over = True
            self._came(session, head, parcel)
        finally:
            if not handed_over:
                reception.drop(worker.arrivals, front.now())
                front.taken(session, parcel.push)

    async def _open(self, session: Session, head: bytes, reception: Reception, handle: bytes) -> str:
        front, parcel = self._front, reception.parcel
        await self._room(session)
        self._reserve(session, parcel)
        try:
            worker = front.workers.of_tenant[session.tenant]
            if worker.link.full:
                await worker.link.writable()
            self.alive(session)
            taken = front.opening[session.number, parcel.push] = asyncio.get_running_loop().create_future()
            front.send(Kind.ARRIVAL, session, Arrival(head, (), b"", handle))
            cannot: str = await taken
        finally:
            front.opening.pop((session.number, parcel.push), None)
            front.taken(session, parcel.push)
        if not cannot:
            self._came(session, head, parcel)
        return cannot

    def _came(self, session: Session, head: bytes, parcel: Parcel) -> None:
        session.note_arrival(parcel.push)
        self._front.count(session, arrivals=1, peer_bytes_in=len(head) + parcel.body_nbytes)

    async def _room(self, session: Session) -> None:
        """Waits while the worker has many parcels to take already."""
        front = self._front
        while len(front.untaken[session.number]) >= MAX_UNTAKEN:
            front.took.clear()
            await front.took.wait()
            self.alive(session)

    def _reserve(self, session: Session, parcel: Parcel, buffers: Buffers | None = None) -> None:
        """Until the worker counts the values itself. buffers: those that hold them; None: the device does.

        Raises:
            Refuse: there is no memory.
        """
        front, push = self._front, f"push {parcel.push}"
        memory, most = front.memory(session.tenant), MAX_UPLOADS + MAX_UNTAKEN
        if buffers is None:
            memory = replace(memory, folder_free_nbytes=memory.capacity_nbytes)
        elif memory.folder_free_nbytes < 2 * parcel.nbytes:
            buffers.drop_spare()
            memory = front.memory(session.tenant)
        gone = front.blobs.reserve(session.number, session.principal, push, parcel.nbytes, memory, most)
        front.unlink(gone)
        front.untaken[session.number].add(parcel.push)

    def alive(self, session: Session) -> None:
        """To be asked after every await: the session may have ended meanwhile."""
        if session.number not in self._front.table.by_number:
            raise Refuse("session", f"session {session.id} is over")
