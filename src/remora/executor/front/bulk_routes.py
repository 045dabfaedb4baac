"""Large values on their way to the client: files that the worker wrote, streamed from its memory map."""

from __future__ import annotations

import mmap

from aiohttp import web

from remora.executor.front.front import Front
from remora.executor.front.refusal import Refuse
from remora.executor.front.request import session_of
from remora.wire.limits import BULK_CHUNK_NBYTES


class BulkRoutes:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Streams a file, from `Range: bytes=K-` on.

        Written to the socket is not yet read by the client: the file goes once the client asks for another
        one, or after a moment, so that a cut at the very end can still be mended.
        """
        front = self._front
        session = session_of(front, request)
        id = request.match_info["bulk"]
        for done in session.bulks_to_drop(id, front.now()):
            front.drop_bulk(session, done)
        bulk = session.bulks.get(id)
        if bulk is None:
            raise Refuse("blob", f"this session has no bulk value {id[:64]!r}; it may have been read", 404)
        start = _start(request, bulk.nbytes)
        response = web.StreamResponse(status=206 if "Range" in request.headers else 200)
        response.content_type = "application/octet-stream"
        response.content_length = bulk.nbytes - start
        if response.status == 206:
            response.headers["Content-Range"] = f"bytes {start}-{bulk.nbytes - 1}/{bulk.nbytes}"
        content = _mapped(bulk.path, bulk.nbytes)
        await response.prepare(request)
        for position in range(start, bulk.nbytes, BULK_CHUNK_NBYTES):
            await response.write(content[position : position + BULK_CHUNK_NBYTES])
            session.renew(front.now())
        await response.write_eof()
        front.count(session, bytes_out=bulk.nbytes - start)
        session.read_at[id] = front.now()
        return response


def _start(request: web.Request, nbytes: int) -> int:
    try:
        asked = request.http_range
    except ValueError:
        raise Refuse("protocol", "malformed Range; 'bytes=K-' is understood") from None
    start = asked.start or 0
    if asked.stop is not None or start < 0:
        raise Refuse("protocol", "only 'Range: bytes=K-' is understood")
    if start and start >= nbytes:
        raise Refuse("protocol", f"Range starts at {start} of {nbytes} bytes", 416)
    return int(start)


def _mapped(path: str, nbytes: int) -> memoryview:
    """The file's bytes; the map lives as long as a slice of it waits in a socket's queue."""
    if not nbytes:
        return memoryview(b"")
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), nbytes, prot=mmap.PROT_READ))
