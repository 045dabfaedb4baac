"""One TCP or TLS connection: counted at the socket, never waiting longer than it was told to.

The socket is non-blocking, so that a wait can be bounded, ended by `close` from another thread, and taken
outside any lock. With TLS the counts are of the bytes inside the TLS records.
"""

from __future__ import annotations

import io
import ipaddress
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from remora.errors import ConnectError, NobodyListens
from remora.transport.address import Address
from remora.transport.interface import Buffer


class Traffic:
    """Counts of the bytes that went through sockets; outlives each of them."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0


class Connection:
    """A connected socket. `read` and `write` must not overlap; `close` may, with anything."""

    def __init__(self, sock: socket.socket, traffic: Traffic) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._ahead: bytearray | None = None  # the byte that `readable_now` has read, if any
        self._tls_waits_for_other = False  # TLS may need to write in order to read, and the reverse
        self.deadline = float("inf")  # of the blocking calls, on time.monotonic()
        self.stall_s = float("inf")  # the longest that one blocking call may make no progress
        self._traffic = traffic

    def read(self, into: Buffer) -> int | None:
        """Reads what is there: the number of bytes, 0 at the end of the stream, None if nothing is there."""
        if self._ahead is not None:
            memoryview(into)[:1], self._ahead = self._ahead, None
            return 1
        try:
            n = self._sock.recv_into(into)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self._tls_waits_for_other = True
            return None
        except ssl.SSLEOFError:
            return 0
        except ValueError as error:  # TLS socket closed by another thread
            raise ConnectionAbortedError(str(error)) from None
        self._traffic.bytes_received += n
        return n

    def write(self, data: Buffer) -> int:
        """Writes what fits now; returns the number of bytes, which may be 0."""
        try:
            n = self._sock.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return 0
        except ssl.SSLWantReadError:
            self._tls_waits_for_other = True
            return 0
        except ValueError as error:
            raise ConnectionAbortedError(str(error)) from None
        self._traffic.bytes_sent += n
        return n

    def wait(self, timeout_s: float, *, readable: bool = False, writable: bool = False) -> None:
        """Returns when the socket may be ready, or `timeout_s` has passed."""
        if self._tls_waits_for_other:
            self._tls_waits_for_other = False
            readable = writable = True
        fileno = self._sock.fileno()
        if fileno < 0:
            raise ConnectionAbortedError("connection was closed here")
        timeout_s = max(0.0, min(timeout_s, 3600.0))
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(fileno, (select.POLLIN if readable else 0) | (select.POLLOUT if writable else 0))
            poll.poll(timeout_s * 1000)
        else:  # Windows
            select.select([fileno] * readable, [fileno] * writable, [fileno], timeout_s)

    def readable_now(self) -> bool:
        """Whether a byte, or the end of the stream, is already there. An idle connection should say no.

        It reads: with TLS, a socket that polls as readable may hold nothing but a session ticket.
        """
        if self._ahead is not None:
            return True
        byte = bytearray(1)
        n = self.read(byte)
        if n:
            self._ahead = byte
        return n is not None

    def read_some(self, into: Buffer) -> int:
        """As `read`, but waits. Raises TimeoutError."""
        while (n := self.read(into)) is None:
            self._wait_in_time(readable=True)
        return n

    def write_all(self, data: Buffer) -> None:
        """Writes everything, straight from `data`. Raises TimeoutError."""
        left = memoryview(data)
        while left:
            n = self.write(left)
            left = left[n:]
            if not n:
                self._wait_in_time(writable=True)

    def _wait_in_time(self, *, readable: bool = False, writable: bool = False) -> None:
        started = time.monotonic()
        limit_s = min(self.deadline - started, self.stall_s)
        self.wait(limit_s, readable=readable, writable=writable)
        if time.monotonic() - started >= limit_s:
            raise TimeoutError

    def makefile(self, mode: str) -> io.BufferedReader:
        """A buffered reader, as http.client wants it; closing it leaves the connection open."""
        assert mode == "rb"
        return io.BufferedReader(_Reader(self), 1 << 16)

    @property
    def peer_ip(self) -> str:
        return str(self._sock.getpeername()[0])

    def close(self) -> None:
        """Ends the connection and wakes whoever waits on it."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class _Reader(io.RawIOBase):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        return self._connection.read_some(into)


def connect(
    address: Address,
    tls: ssl.SSLContext | None,
    traffic: Traffic,
    timeout_s: float,
    permit: Callable[[str], bool] | None = None,
) -> Connection:
    """Connects to `address`, TLS handshake included, within `timeout_s`. Raises ConnectError.

    permit: of each IP address that the host name has, whether it may be spoken to.
    """
    deadline = time.monotonic() + timeout_s
    found = _resolve(address, timeout_s)
    if permit is not None:
        found = [entry for entry in found if permit(entry[4][0])]
        if not found:
            raise ConnectError(f"{address.text}: it is at no address that may be spoken to from here")
    try:
        sock = _first_that_connects(found, deadline)
    except TimeoutError:
        hint = "is the machine up, and the port open in its firewall?"
        raise ConnectError(f"{address.text}: nobody answered within {timeout_s:g} s; {hint}") from None
    except ConnectionRefusedError:
        hint = "nobody listens there; start it with `remora serve`"
        raise NobodyListens(f"{address.text}: connection refused; {hint}") from None
    except OSError as error:
        raise ConnectError(f"{address.text}: {error.strerror or error}") from None
    if tls is None:
        return Connection(sock, traffic)
    try:
        sock.settimeout(max(1e-3, deadline - time.monotonic()))
        return Connection(tls.wrap_socket(sock, server_hostname=address.host), traffic)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise ConnectError(_tls_failure(address, error, timeout_s)) from None
        raise


def _tls_failure(address: Address, error: OSError, timeout_s: float) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "set REMORA_CA to the file of the authority that signed it"
        return f"{address.text}: its certificate is not trusted ({error.verify_message}); {hint}"
    if isinstance(error, TimeoutError):
        return f"{address.text}: nobody answered within {timeout_s:g} s (TLS handshake)"
    reason = error.strerror or str(error) or type(error).__name__
    return f"{address.text}: TLS handshake failed ({reason}); does the executor serve plain http://?"


_Resolved = list[tuple[Any, ...]]


def _resolve(address: Address, timeout_s: float) -> _Resolved:
    """getaddrinfo within a time limit: on a thread of its own, which a dead name server may keep waiting."""

    def ask() -> _Resolved | OSError:
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            return cast(_Resolved, found)
        except OSError as error:
            return error
        except UnicodeError as error:
            return OSError(f"not a host name ({error})")

    if _is_numeric(address.host):
        found = ask()
    else:
        answers: queue.SimpleQueue[_Resolved | OSError] = queue.SimpleQueue()
        threading.Thread(target=lambda: answers.put(ask()), name="remora-resolve", daemon=True).start()
        try:
            found = answers.get(timeout=timeout_s)
        except queue.Empty:
            text = f"{address.text}: the name {address.host!r} was not resolved within {timeout_s:g} s"
            raise ConnectError(text) from None
    if isinstance(found, OSError):
        reason = found.strerror or found
        text = f"{address.text}: the name {address.host!r} was not resolved: {reason}"
        raise ConnectError(f"{text}; check it, or give the machine's IP address") from None
    return found


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _first_that_connects(candidates: _Resolved, deadline: float) -> socket.socket:
    """Tries the candidates in order, each with an equal share of the time that is left."""
    failure: OSError = OSError("the name has no address")
    for i, (family, kind, protocol, _, target) in enumerate(candidates):
        sock = socket.socket(family, kind, protocol)
        try:
            share_s = (deadline - time.monotonic()) / (len(candidates) - i)
            sock.settimeout(max(1e-3, share_s))
            sock.connect(target)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure
