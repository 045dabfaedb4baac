"""Carries values to an executor of this host: the body's file, or its device memory, is handed over and not its bytes.

Whether the peer is on this host is not read from names: its socket is found in a folder that only this user's
processes on this host can open, and what listens there must prove that it granted the push secret, as over HTTP.
One failure ends this way for the session's peer; what follows goes over HTTP, and each push says that it did.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

from remora.errors import ConnectError, ProtocolError, Refused
from remora.executor.front.carrier import (
    CONNECT_S,
    MAX_CONNECTIONS,
    MAX_TOLD_CHARS,
    STALL_S,
    CannotOpen,
    Carried,
    HttpCarrier,
    proof_of,
)
from remora.executor.front.local_frames import (
    VERSION,
    Answer,
    Came,
    Declined,
    Give,
    Hello,
    Proven,
    ask,
    fits,
    same_user,
    socket_in,
)
from remora.executor.hop import Outgoing
from remora.wire.messages import Peer


class _NotThisWay(Exception):
    """The other end cannot, or is not there; the text says why."""


class LocalCarrier:
    """An HTTP carrier, and the shorter way where there is one.

    Args:
        base: where the private folders of this host's fronts are.
        device: kind of device memory that the worker here can lend.
    """

    def __init__(self, http: HttpCarrier, peer: Peer, base: Path, device: str) -> None:
        self.peer, self.opens = http.peer, ""
        self._http, self._base, self._device = http, base, device
        self._session, self._secret = peer.session, peer.secret
        self._path: Path | None = None
        self._looked = False
        self._missed = ""  # why there is no shorter way, though the peer is here
        self._not_opened = ""  # why it does not open device memory
        self._idle: list[socket.socket] = []
        self._busy: set[socket.socket] = set()
        self._closed = False

    def carry(self, out: Outgoing) -> Carried:
        path = self._here()
        if path is not None and not (out.handle and self._not_opened):
            try:
                return self._give_twice(path, out)
            except _NotThisWay as error:
                self._miss(str(error))
                if out.handle:
                    raise CannotOpen(self._missed, answered=False) from None
        if out.handle:
            raise CannotOpen(self._not_opened or self._missed or "it is on another host", answered=True)
        carried = self._http.carry(out)
        return Carried(carried.seconds, carried.way, self._missed)

    def abandon(self, names: tuple[int, ...], reason: str) -> None:
        self._http.abandon(names, reason)

    def close(self) -> None:
        self._closed = True
        self._drop_idle()
        for connection in list(self._busy):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._http.close()

    # ---- where it is

    def _here(self) -> Path | None:
        """The peer's socket, as long as it can be used."""
        if not self._looked:
            try:
                folder = self._http.folder()
                path = socket_in(self._base, folder) if folder else None
                if path is not None and fits(path):
                    self._give_back(self._connect(path))
                    self._path = path
            except (ProtocolError, _NotThisWay) as error:
                self._miss(str(error))
            self._looked = True
        return self._path

    def _miss(self, why: str) -> None:
        self._path, self.opens = None, ""
        self._missed = why[:MAX_TOLD_CHARS] or "it failed"
        self._drop_idle()

    def _connect(self, path: Path) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(CONNECT_S)
            connection.connect(os.fspath(path))
            if not same_user(connection):
                raise _NotThisWay("the executor on this host belongs to another user")
            nonce = secrets.token_hex(16)
            answer = ask(connection, Hello(VERSION, self._session, nonce))
            if isinstance(answer, Declined):
                raise _NotThisWay(answer.message)
            expected = proof_of(self._secret, nonce).encode()
            if not isinstance(answer, Proven) or not hmac.compare_digest(answer.proof.encode(), expected):
                raise _NotThisWay("what listens on this host gives no proof that it is the peer")
            connection.settimeout(STALL_S)
        except BaseException as error:
            connection.close()
            if isinstance(error, (OSError, ProtocolError)):
                raise _NotThisWay(f"the socket on this host: {error}") from None
            raise
        if self._device and answer.device == self._device and not self._not_opened:
            self.opens = self._device
        return connection

    # ---- parcels

    def _give_twice(self, path: Path, out: Outgoing) -> Carried:
        """The second try has the same push id, so that it cannot arrive twice."""
        try:
            return self._give(path, out)
        except _NotThisWay:
            if self._closed:
                raise ConnectError(f"peer {self.peer}: the connection was closed here") from None
            self._drop_idle()
            return self._give(path, out)

    def _give(self, path: Path, out: Outgoing) -> Carried:
        """Raises _NotThisWay, CannotOpen, Refused."""
        connection = self._take() or self._connect(path)
        self._busy.add(connection)
        try:
            started = time.perf_counter()
            answer = self._ask(connection, out)
            seconds = time.perf_counter() - started
        except (OSError, ProtocolError) as error:
            connection.close()
            raise _NotThisWay(f"the socket on this host: {error}") from None
        except BaseException:
            connection.close()
            raise
        finally:
            self._busy.discard(connection)
        self._give_back(connection)
        if isinstance(answer, Came):
            way = "device" if out.handle else "host"
            return Carried(seconds, way, out.not_lent or ("" if out.handle or out.data else self._not_opened))
        assert isinstance(answer, Declined)
        if not answer.elsewhere:
            raise Refused(answer.message[:MAX_TOLD_CHARS])
        if not out.handle:
            raise _NotThisWay(answer.message)
        self.opens, self._not_opened = "", answer.message[:MAX_TOLD_CHARS] or "it failed"
        raise CannotOpen(self._not_opened, answered=True)

    def _ask(self, connection: socket.socket, out: Outgoing) -> Answer:
        give = Give(self._secret, out.head, out.nbytes, out.data, out.handle)
        if not out.path:
            answer = ask(connection, give)
        else:
            with open(out.path, "rb") as file:
                answer = ask(connection, give, file.fileno())
        if not isinstance(answer, (Came, Declined)):
            raise ProtocolError("an answer to another question")
        return answer

    # ---- connections

    def _take(self) -> socket.socket | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _give_back(self, connection: socket.socket) -> None:
        if self._closed or len(self._idle) >= MAX_CONNECTIONS:
            connection.close()
        else:
            self._idle.append(connection)

    def _drop_idle(self) -> None:
        while (connection := self._take()) is not None:
            connection.close()
