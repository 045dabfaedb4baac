"""The transport over HTTP(S): control and bulk on one kept-alive connection, steps on a channel beside it."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from remora.errors import AuthError, ConnectError, ProtocolError, Refused, UsageError
from remora.transport.address import parse_address
from remora.transport.connection import Traffic
from remora.transport.exchange import Exchange, count_in, flat
from remora.transport.interface import Channel
from remora.transport.post import PostChannel
from remora.transport.websocket import open_websocket
from remora.wire.messages import Abandon, BlobAnswer, BlobProof, BlobQuery, Grant, OpenSession, Status

T = TypeVar("T")

BULK_STALL_S = 30.0  # a bulk request without a byte for so long counts as cut
PAUSES_S = (0.1, 0.4, 1.6)  # before each further try of a bulk request that made no progress
MAX_JSON_NBYTES = 16 << 20
_FOREVER = float("inf")


class HttpTransport(Traffic):
    """One executor's HTTP port.

    Args:
        url: such as http://10.0.0.7:8470 or https://gpu.example.org; the port defaults to 8470.
        token: sent as Bearer token.
        ca_file: PEM file of the authority that signed the executor's certificate (https).
        mode: 'websocket', or 'post' where no WebSocket gets through.

    Raises:
        UsageError: the URL or the mode is not one.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        ca_file: str | None = None,
        mode: str = "websocket",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        if mode not in ("websocket", "post"):
            raise UsageError(f"transport {mode!r} does not exist; REMORA_TRANSPORT is websocket or post")
        self._address = parse_address(url)
        self.address = self._address.text
        self.mode = mode
        self._sleep = sleep
        self._tls = _tls_context(ca_file) if self._address.secure else None
        self._headers = {"Authorization": f"Bearer {_header_safe(token)}"} if token else {}
        self._exchange = Exchange(self._address, self._tls, self._headers, self)

    def open_session(self, wants: OpenSession, timeout_s: float) -> Grant:
        body = [msgspec.json.encode(wants)]
        with self._exchange.request("POST", "/v1/sessions", body, _JSON, timeout_s=timeout_s) as response:
            return self._decode(response, Grant)

    def close_session(self, grant: Grant, timeout_s: float) -> None:
        with self._exchange.request("DELETE", _route(grant), headers=_secret(grant), timeout_s=timeout_s):
            pass

    def open_channel(self, grant: Grant, epoch: int, received: int, timeout_s: float) -> tuple[Channel, int]:
        path = f"{_route(grant)}/steps"
        headers = {**self._headers, **_secret(grant)}
        if self.mode == "post":
            poster = PostChannel(self._address, self._tls, path, headers, epoch, received)
            try:
                poster.post(0.0, timeout_s)
            except BaseException:
                poster.close()
                raise
            return poster, poster.peer_received
        path += f"?epoch={epoch}&received={received}"
        channel, response = open_websocket(self._address, self._tls, path, headers, timeout_s)
        try:
            return channel, count_in(response.headers, "X-Remora-Received", self._address)
        except ConnectError:
            channel.abandon()
            raise

    def query_blobs(self, grant: Grant, digests: tuple[str, ...]) -> BlobAnswer:
        path = f"{_route(grant)}/blobs/query"
        body = [msgspec.json.encode(BlobQuery(digests))]

        def ask() -> BlobAnswer:
            with self._request(grant, "POST", path, body) as response:
                return self._decode(response, BlobAnswer)

        return self._persist(ask)

    def prove_blobs(self, grant: Grant, proofs: dict[str, str]) -> None:
        path = f"{_route(grant)}/blobs/prove"
        body = [msgspec.json.encode(BlobProof(proofs))]

        def prove() -> None:
            with self._request(grant, "POST", path, body):
                pass

        self._persist(prove)

    def put_blob(
        self, grant: Grant, digest: str, data: memoryview, progress: Callable[[int], None] | None = None
    ) -> None:
        """See the interface. `progress` gets increments, negative ones when a cut made bytes go again."""
        path = f"{_route(grant)}/blobs/{quote(digest)}"
        data = flat(data)
        told = 0  # bytes that `progress` knows of

        def tell(nbytes: int) -> None:
            nonlocal told
            told += nbytes
            if progress and nbytes:
                progress(nbytes)

        def put(offset: int) -> None:
            tell(offset - told)
            query = f"?offset={offset}" if offset else ""
            with self._request(grant, "PUT", path + query, [data[offset:]], progress=tell):
                pass

        def held() -> int:
            try:
                with self._request(grant, "HEAD", path) as response:
                    offset = count_in(response.headers, "X-Remora-Offset", self._address)
            except Refused:  # without a body that says why; the answer to the next PUT has one
                return 0
            if offset > data.nbytes:
                raise ProtocolError(f"{self.address}: holds {offset} bytes of a blob of {data.nbytes}")
            return offset

        self._resume(put, held)

    def get_bulk(self, grant: Grant, bulk: str, into: memoryview) -> None:
        path = f"{_route(grant)}/bulk/{quote(bulk)}"
        into = flat(into)
        done = 0

        def get(offset: int) -> None:
            nonlocal done
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            with self._request(grant, "GET", path, headers=headers) as response:
                done = offset if response.status == 206 else 0  # 200: from the start after all
                if response.length != into.nbytes - done:
                    text = f"{response.length} bytes of value {bulk!r}, expected {into.nbytes - done}"
                    raise ProtocolError(f"{self.address}: sent {text}")
                while done < into.nbytes:
                    n = response.readinto(into[done : done + _READ_NBYTES])
                    if n == 0:
                        raise ConnectionResetError("the body ended early")
                    done += n

        self._resume(get, lambda: done)

    def abandon(self, grant: Grant, names: tuple[int, ...], reason: str, timeout_s: float) -> None:
        body = [msgspec.json.encode(Abandon(names, reason[:4096]))]
        headers = {**_JSON, "X-Remora-Secret": grant.push_secret}
        path = f"{_route(grant)}/abandon"
        with self._exchange.request("POST", path, body, headers, timeout_s=timeout_s):
            pass

    def op_table(self, timeout_s: float) -> dict[str, str]:
        with self._exchange.request("GET", "/v1/ops", timeout_s=timeout_s) as response:
            return self._decode(response, dict[str, str])

    def op_schemas(self, timeout_s: float) -> dict[str, str]:
        with self._exchange.request("GET", "/v1/ops/schemas", timeout_s=timeout_s) as response:
            return self._decode(response, dict[str, str])

    def status(self, timeout_s: float) -> Status:
        with self._exchange.request("GET", "/v1/status", timeout_s=timeout_s) as response:
            return self._decode(response, Status)

    def close(self) -> None:
        self._exchange.close()

    def _request(
        self, grant: Grant, method: str, path: str, body: Any = (), headers: Any = None, progress: Any = None
    ) -> Any:
        return self._exchange.request(
            method,
            path,
            body,
            {**_secret(grant), **(headers or {})},
            timeout_s=_FOREVER,
            stall_s=BULK_STALL_S,
            progress=progress,
        )

    def _decode(self, response: HTTPResponse, kind: type[T]) -> T:
        body = response.read(MAX_JSON_NBYTES + 1)
        try:
            if len(body) > MAX_JSON_NBYTES:
                raise msgspec.DecodeError("it is too long")
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            text = f"{self.address}: answered with something that is not Remora's ({error})"
            raise ConnectError(f"{text}; is this the executor's port?") from None

    def _persist(self, attempt: Callable[[], T]) -> T:
        """Tries again after a cut, a few times."""
        for pause_s in PAUSES_S:
            try:
                return attempt()
            except (AuthError, Refused):
                raise
            except ConnectError:
                self._sleep(pause_s)
        return attempt()

    def _resume(self, attempt: Callable[[int], None], reached: Callable[[], int]) -> None:
        """Attempts from offset 0, after a cut from where it `reached`; gives up when no try gets further."""
        offset, fruitless = 0, 0
        while True:
            try:
                return attempt(offset)
            except (AuthError, Refused):
                raise
            except ConnectError:
                if fruitless == len(PAUSES_S):
                    raise
                self._sleep(PAUSES_S[fruitless])
            before, offset = offset, self._persist(reached)
            fruitless = 0 if offset > before else fruitless + 1


_JSON = {"Content-Type": "application/json"}
_READ_NBYTES = 8 << 20


def _route(grant: Grant) -> str:
    return f"/v1/sessions/{quote(grant.session, safe='')}"


def _secret(grant: Grant) -> dict[str, str]:
    return {"X-Remora-Secret": grant.secret}


def _header_safe(token: str) -> str:
    if not token.isascii() or not token.isprintable():
        raise UsageError("the token (REMORA_TOKEN) holds characters that HTTP does not carry")
    return token


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the authority file {ca_file!r} (REMORA_CA) cannot be read: {error}") from None
