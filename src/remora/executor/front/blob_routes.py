"""Stored bytes: which are here, proof of possession, and uploads that survive cuts."""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets

from aiohttp import ClientError, web

from remora.executor.front.blobs import Blob
from remora.executor.front.front import Front
from remora.executor.front.intake import IntakePool
from remora.executor.front.refusal import Refuse
from remora.executor.front.request import OFFSET_HEADER, json_answer, json_body, length_of, number, session_of
from remora.executor.front.sessions import Session
from remora.executor.front.uploads import Upload, keyed_hash
from remora.wire.limits import MAX_BLOB_NBYTES
from remora.wire.messages import BlobAnswer, BlobProof, BlobQuery

_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobRoutes:
    def __init__(self, front: Front) -> None:
        self._front = front
        self._intakes = IntakePool()

    async def query(self, request: web.Request) -> web.Response:
        session = session_of(self._front, request)
        asked = await json_body(request, BlobQuery)
        held = self._front.blobs.held(session.tenant, asked.digests)
        return json_answer(BlobAnswer(held, session.nonce.hex()))

    async def prove(self, request: web.Request) -> web.Response:
        front = self._front
        session = session_of(front, request)
        proof = await json_body(request, BlobProof)
        for digest, given in proof.proofs.items():
            blob = front.blobs.get(session.tenant, digest)
            if blob is None or not await _proven(blob, given, session.nonce):
                raise Refuse("blob", f"no proof that this session has blob {digest}; upload it")
            _alive(front, session)
            if front.blobs.get(session.tenant, digest) is not blob:
                raise Refuse("blob", f"blob {digest} was evicted meanwhile; upload it")
            front.blobs.hold(session.number, blob, front.now())
            front.offer(session, blob)
        return web.Response(status=204)

    async def head(self, request: web.Request) -> web.Response:
        """How much of an interrupted upload is here; a connection that still feeds it is stopped."""
        session, digest = session_of(self._front, request), _digest(request)
        upload = self._front.uploads.get((session.number, digest))
        offset = 0
        if upload is not None:
            await upload.take_over()
            offset, upload.heard_at = upload.offset, self._front.now()
        elif blob := self._held(session, digest):
            offset = blob.nbytes
        return web.Response(headers={OFFSET_HEADER: str(offset)})

    async def put(self, request: web.Request) -> web.Response:
        front = self._front
        session, digest = session_of(front, request), _digest(request)
        offset, length = number(request, "offset", 0), length_of(request, MAX_BLOB_NBYTES)
        blob = self._held(session, digest)
        if blob is not None and offset == blob.nbytes and not length:  # the answer was lost, not the bytes
            return web.Response(status=204)
        if offset:
            upload = await self._go_on(session, digest)
        else:
            await front.drop_upload(session.number, digest)
            upload = await self._begin(session, digest, length)
        if (offset, offset + length) != (upload.offset, upload.nbytes):
            raise Refuse(
                "protocol",
                f"bytes {offset} to {offset + length} do not go on at {upload.offset} of {upload.nbytes}",
            )

        def heard() -> None:
            upload.heard_at = front.now()
            session.renew(upload.heard_at)

        try:
            intake = self._intakes.intake(request, length)
            if intake is not None:
                await upload.receive(intake, length, heard)
            else:
                await upload.feed(request.content, heard)
        except (ClientError, ConnectionError):
            return web.Response(status=400)  # to nobody; what arrived stays for the next try
        except Refuse:  # bytes and hash are no longer of one length
            await front.drop_upload(session.number, digest)
            raise
        front.count(session, bytes_in=length)
        await self._finish(session, upload)
        return web.Response(status=204)

    def _held(self, session: Session, digest: str) -> Blob | None:
        blob = self._front.blobs.get(session.tenant, digest)
        return blob if blob is not None and session.number in blob.holders else None

    async def _go_on(self, session: Session, digest: str) -> Upload:
        upload = self._front.uploads.get((session.number, digest))
        if upload is None:
            raise Refuse("blob", "nothing of this blob is here; start at offset 0", 400)
        await upload.take_over()
        return upload

    async def _begin(self, session: Session, digest: str, nbytes: int) -> Upload:
        front, number = self._front, session.number
        memory = front.memory(session.tenant)
        front.unlink(front.blobs.reserve(number, session.principal, digest, nbytes, memory))
        try:
            upload = await Upload.create(digest, nbytes, front.blob_folder / secrets.token_hex(16))
        except BaseException:
            front.blobs.unreserve(number, digest)
            raise
        upload.heard_at = front.now()
        front.uploads[number, digest] = upload
        if number not in front.table.by_number:  # ended while the file was made
            await front.drop_upload(number, digest)
            _alive(front, session)
        return upload

    async def _finish(self, session: Session, upload: Upload) -> None:
        front, digest = self._front, upload.digest
        if not upload.matches():
            await front.drop_upload(session.number, digest)
            raise Refuse("blob", f"the bytes sent do not hash to {digest}; they are dropped", 400)
        _alive(front, session)
        del front.uploads[session.number, digest]
        new = Blob(session.tenant, digest, upload.nbytes, str(upload.path), front.now())
        stored = front.blobs.admit(session.number, new)
        front.offer(session, stored)
        await upload.close(keep_file=stored is new)


async def _proven(blob: Blob, given: str, nonce: bytes) -> bool:
    try:
        expected = await asyncio.to_thread(keyed_hash, blob.path, nonce)
    except FileNotFoundError:  # evicted
        return False
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))


def _alive(front: Front, session: Session) -> None:
    """To be asked after every await: the session may have ended meanwhile."""
    if session.number not in front.table.by_number:
        raise Refuse("session", f"session {session.id} is over")


def _digest(request: web.Request) -> str:
    digest = request.match_info["digest"]
    if not _DIGEST.fullmatch(digest):
        raise Refuse("protocol", "a blob's name is the blake3 hash of its bytes, 64 hex digits, lower case")
    return digest
