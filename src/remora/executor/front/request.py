"""Reading requests, with every bound checked before anything is allocated, and writing JSON answers."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import web

from remora.executor.front.front import Front
from remora.executor.front.refusal import Refuse
from remora.executor.front.sessions import Session

MAX_JSON_NBYTES = 1 << 20
PRINCIPAL = web.RequestKey("principal", str)
SECRET_HEADER = "X-Remora-Secret"
RECEIVED_HEADER = "X-Remora-Received"
OFFSET_HEADER = "X-Remora-Offset"

T = TypeVar("T")


def session_of(front: Front, request: web.Request) -> Session:
    """The session in the path, if the caller has its secret."""
    id = request.match_info["session"]
    secret = request.headers.get(SECRET_HEADER, "")
    return front.table.find(id, secret, request[PRINCIPAL], front.now())


def number(request: web.Request, name: str, default: int | None = None) -> int:
    """A query parameter that is a whole number, not negative."""
    text = request.query.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 16:
        raise Refuse("protocol", f"{name}={text!r} in the query; a whole number is needed")
    return int(text)


def length_of(request: web.Request, limit: int) -> int:
    """The announced length of the body."""
    length = request.content_length
    if length is None:
        if request.body_exists:
            raise Refuse("protocol", "a body needs a Content-Length", 411)
        return 0
    if length > limit:
        raise Refuse("protocol", f"a body of {length} bytes; the limit here is {limit}", 413)
    return length


async def body_of(request: web.Request, limit: int) -> bytes:
    length = length_of(request, limit)
    return await request.content.readexactly(length) if length else b""


async def json_body(request: web.Request, kind: type[T]) -> T:
    body = await body_of(request, MAX_JSON_NBYTES)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refuse("protocol", f"malformed {kind.__name__}: {error}") from None


def json_answer(content: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), status=status, content_type="application/json")
