"""HTTP/1.1 requests over one kept-alive connection, blocking, with failures as Remora's errors."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import Any, cast

import msgspec

from remora.errors import AuthError, ConnectError, NobodyAnswers, Refused, RemoraError, SessionLost
from remora.transport.address import Address
from remora.transport.connection import Connection, Traffic, connect
from remora.transport.interface import Buffer
from remora.wire.limits import BULK_CHUNK_NBYTES
from remora.wire.messages import Refusal

MAX_REFUSAL_NBYTES = 1 << 17


class Exchange:
    """Requests to one address, one after another; safe to share between threads.

    Args:
        tls: None for plain HTTP.
        headers: sent with every request.
        traffic: counts the bytes.
        permit: of each IP address that the host name has, whether it may be spoken to.
    """

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        headers: Mapping[str, str],
        traffic: Traffic,
        permit: Callable[[str], bool] | None = None,
    ) -> None:
        self.address = address
        self._tls = tls
        self._headers = dict(headers)
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._traffic = traffic
        self._permit = permit
        self.connected_to = ""  # IP address of the last connection

    @contextmanager
    def request(
        self,
        method: str,
        path: str,
        body: Sequence[Buffer] = (),
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float,
        stall_s: float = float("inf"),
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[HTTPResponse]:
        """Sends one request and gives its response, whose body may be read inside the `with` block.

        Args:
            body: parts, sent without being joined or copied.
            timeout_s: for connecting, and for all of it.
            stall_s: the longest time without a byte; for bulk bodies, whose `timeout_s` is infinite.
            progress: called with the number of bytes of `body` that each write has handed to the network.

        Raises:
            ConnectError: not reached, no answer in time, or broken; may be tried again.
            AuthError, SessionLost, Refused: the executor's answer.
        """
        deadline = time.monotonic() + timeout_s
        limit_s = min(timeout_s, stall_s)
        refusal: RemoraError | None = None
        with self._turn(timeout_s), self._dropped_if_broken(limit_s):
            connection = self._connected(limit_s)
            connection.deadline = deadline
            connection.stall_s = stall_s
            whole = self._send(connection, method, path, body, headers or {}, progress)
            # http.client only ever calls makefile of what it takes for a socket
            response = HTTPResponse(cast(Any, connection), method=method)
            response.begin()
            if not 200 <= response.status < 300:
                text = response.read(MAX_REFUSAL_NBYTES)
                refusal = answered_error(self.address, response.status, text)
            else:
                yield response
            response.read(1)  # lets http.client notice that the body has ended
            if not whole or response.will_close or not response.isclosed():
                self._drop()
        try:
            if refusal is not None:
                raise refusal
        finally:
            refusal = (
                None  # else error and frame would hold each other, and all that the callers' frames hold
            )

    def cut(self) -> None:
        """As `close`, but waits for nobody."""
        connection = self._connection
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Closes the connection; a request that another thread is waiting for ends with ConnectError."""
        connection = self._connection
        if connection is not None:
            connection.close()
        with self._lock:
            self._drop()

    @contextmanager
    def _turn(self, timeout_s: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX)):
            text = f"another thread's request took longer than {timeout_s:g} s"
            raise ConnectError(f"{self.address.text}: {text}")
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _dropped_if_broken(self, limit_s: float) -> Iterator[None]:
        """After any error the connection is not used again; what the network did becomes a ConnectError."""
        try:
            yield
        except TimeoutError:
            self._drop()
            raise NobodyAnswers(f"{self.address.text}: nobody answered within {limit_s:g} s") from None
        except RemoraError:
            self._drop()
            raise
        except (OSError, HTTPException) as error:
            self._drop()
            raise ConnectError(f"{self.address.text}: the connection broke ({_reason(error)})") from None
        except BaseException:
            self._drop()
            raise

    def _connected(self, limit_s: float) -> Connection:
        try:
            if self._connection is not None and self._connection.readable_now():
                self._drop()  # the peer has ended it meanwhile
        except OSError:
            self._drop()
        if self._connection is None:
            self._connection = connect(self.address, self._tls, self._traffic, limit_s, self._permit)
            self.connected_to = self._connection.peer_ip
        return self._connection

    def _send(
        self,
        connection: Connection,
        method: str,
        path: str,
        body: Sequence[Buffer],
        headers: Mapping[str, str],
        progress: Callable[[int], None] | None,
    ) -> bool:
        """Sends head and body; false if the peer answered before the body was through."""
        parts = [flat(memoryview(part)) for part in body]
        nbytes = sum(part.nbytes for part in parts)
        lines = [f"{method} {self.address.prefix}{path} HTTP/1.1", f"Host: {self.address.authority}"]
        lines += [f"{name}: {value}" for name, value in {**self._headers, **headers}.items()]
        if nbytes or method in ("POST", "PUT"):
            lines.append(f"Content-Length: {nbytes}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if nbytes <= BULK_CHUNK_NBYTES >> 4:
            connection.write_all(b"".join([head, *parts]))
            if progress and nbytes:
                progress(nbytes)
            return True
        connection.write_all(head)
        for part in parts:
            for start in range(0, part.nbytes, BULK_CHUNK_NBYTES):
                chunk = part[start : start + BULK_CHUNK_NBYTES]
                try:
                    if connection.readable_now():
                        return False
                    connection.write_all(chunk)
                except TimeoutError:
                    raise
                except OSError:  # the peer's answer may say why it takes no more
                    return False
                if progress:
                    progress(chunk.nbytes)
        return True

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def flat(view: memoryview) -> memoryview:
    """The same bytes, one-dimensional; `cast` alone refuses empty views."""
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def count_in(headers: Mapping[str, str] | HTTPMessage, name: str, address: Address) -> int:
    """The number that a header of the executor's answer holds. Raises ConnectError."""
    text = headers.get(name, "")
    if not (text.isascii() and text.isdecimal()):
        raise ConnectError(f"{address.text}: answered without {name}; is this the executor's port?")
    return int(text)


def answered_error(address: Address, status: int, body: bytes) -> RemoraError:
    """The error that an HTTP answer without success stands for."""
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
        kind, message = refusal.kind, refusal.message
    except msgspec.DecodeError:  # a proxy's page, or another program
        kind, message = "", "with a body that is not Remora's; is this the executor's port?"
    text = f"{address.text} answered {status}: {message}"
    if status == 401:
        return AuthError(text)
    if status == 404 and kind == "session":
        return SessionLost(text)
    if status in (502, 504) and not kind:  # a proxy that cannot reach the executor at the moment
        return ConnectError(text)
    return Refused(text)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, HTTPException) and not isinstance(error, OSError):
        return f"it answered what is not HTTP, {type(error).__name__}"  # whose text is the peer's
    return str(error) or type(error).__name__
