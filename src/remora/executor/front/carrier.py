"""What carries values to another executor: HTTP, whatever the two have between them.

Executors of one host have a shorter way (local_carrier.py), found through this one. The place to add another is
`carrier_to`.
"""

from __future__ import annotations

import functools
import hmac
import mmap
import secrets
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import msgspec

from remora.errors import AuthError, ConnectError, Refused, SessionLost
from remora.executor.front.peers import PeerRule
from remora.executor.front.refusal import Refuse
from remora.executor.hop import Outgoing
from remora.transport.address import Address
from remora.transport.connection import Traffic
from remora.transport.exchange import Exchange
from remora.wire.messages import Abandon, Peer

CONNECT_S = 5.0
STALL_S = 60.0  # a peer that takes nothing for so long is gone; its tenants' other work may keep it busy
MAX_CONNECTIONS = 4  # to one peer, for one session
MAX_IDLE_S = 30.0  # the peer closes them after 75
MAX_TOLD_CHARS = 500  # of what a peer answered
NO_PROOF = "is it a remora executor, and are session and push secret those of its grant?"
PROOF_HEADER = "X-Remora-Proof"
HERE_HEADER = "X-Remora-Here"  # name of the private folder in which executors of the same host find a socket
PUSH_SECRET_HEADER = "X-Remora-Secret"


def proof_of(push_secret: str, nonce: str) -> str:
    """What only an executor that has granted the secret can answer."""
    return hmac.new(push_secret.encode(), f"remora push {nonce}".encode(), "sha256").hexdigest()


@dataclass(frozen=True)
class Carried:
    """How a parcel came there. seconds: of the try that did it. missed: why it took HTTP, or the host's memory, where
    the two have a shorter way; empty: it took the shortest."""

    seconds: float
    way: str  # http, host (the host's memory), device (the device's)
    missed: str = ""


class CannotOpen(Exception):
    """The peer cannot open the device memory in which a parcel lies; it takes it from the host's.

    answered: the peer says so; else it may be reading still.
    """

    def __init__(self, message: str, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered


class Carrier(Protocol):
    """The way to one session on another executor. Blocking; threads may use it side by side.

    opens: the kind of device memory that the peer can open; known once something was carried.
    """

    peer: str  # for messages
    opens: str

    def carry(self, out: Outgoing) -> Carried:
        """Brings one parcel there, with a second try after a cut.

        Raises:
            ConnectError: it is not there, or refused it; the message says what and where.
            CannotOpen: nothing of the parcel was taken.
        """

    def abandon(self, names: tuple[int, ...], reason: str) -> None:
        """Tells the session there that values will not come. Raises ConnectError."""

    def close(self) -> None:
        """Ends it at once, also for those who use it."""


def carrier_to(peer: Peer, rule: PeerRule) -> HttpCarrier:
    """Raises Refuse: the rule, or what the client wrote, forbids it."""
    address = rule.check(peer.url)
    if not (peer.session.isascii() and peer.session.isalnum()):
        raise Refuse("protocol", f"peer {peer.peer}: {peer.session[:64]!r} is not a session's name")
    if not (peer.secret.isascii() and peer.secret.replace("-", "").replace("_", "").isalnum()):
        raise Refuse("protocol", f"peer {peer.peer}: its push secret is not one")
    return HttpCarrier(address, peer, rule)


@dataclass
class _Way:
    """A connection that has proven to lead to the right executor, and where that is."""

    exchange: Exchange
    used_at: float


class HttpCarrier:
    """Pooled connections. Each first asks for a proof that the peer knows the push secret, so that nothing of a
    client's choosing but a fixed path ever reaches what is no executor."""

    def __init__(self, address: Address, peer: Peer, rule: PeerRule) -> None:
        self.peer = f"{peer.peer} at {address.text}"
        self.opens = ""
        self._address, self._rule = address, rule
        self._authority = _authority(peer) if address.secure and peer.ca else None
        self._session, self._secret = peer.session, peer.secret
        self._idle: list[_Way] = []
        self._busy: set[Exchange] = set()
        self._closed = False

    def carry(self, out: Outgoing) -> Carried:
        if out.handle:
            raise CannotOpen("HTTP brings what lies in the host's memory", answered=True)
        path, parts = f"/values?header={len(out.head)}", (out.head, _body(out))
        try:
            return Carried(self._ask("POST", path, parts)[0], "http")
        except ConnectError as error:
            if type(error) is not ConnectError or self._closed:  # refused, or silent: it would be so again
                raise
            self._drop_idle()
            return Carried(self._ask("POST", path, parts)[0], "http")

    def folder(self) -> str:
        """Name of the private folder in which the peer listens to executors of its host, or nothing.

        Raises:
            ConnectError: it is not there, or refused.
        """
        path = f"/values?nonce={secrets.token_hex(16)}"
        return self._ask("GET", path, [], CONNECT_S)[1].get(HERE_HEADER, "")

    def abandon(self, names: tuple[int, ...], reason: str) -> None:
        self._ask("POST", "/abandon", [msgspec.json.encode(Abandon(names, reason))])

    def close(self) -> None:
        self._closed = True
        self._drop_idle()
        for exchange in list(self._busy):
            exchange.cut()

    def _ask(
        self, method: str, path: str, body: Sequence[bytes | memoryview], timeout_s: float = float("inf")
    ) -> tuple[float, Mapping[str, str]]:
        """Seconds, and the headers of the answer."""
        way = self._take() or self._connect()
        self._busy.add(way.exchange)
        try:
            started = time.perf_counter()
            with way.exchange.request(
                method,
                f"/v1/sessions/{self._session}{path}",
                body,
                {PUSH_SECRET_HEADER: self._secret},
                timeout_s=timeout_s,
                stall_s=STALL_S,
            ) as response:
                headers = dict(response.headers.items())
            seconds = time.perf_counter() - started
        except BaseException as error:
            way.exchange.close()
            if isinstance(error, (Refused, AuthError, SessionLost)):
                raise Refused(str(error)[:MAX_TOLD_CHARS]) from None
            raise
        finally:
            self._busy.discard(way.exchange)
        self._give(way)
        return seconds, headers

    def _take(self) -> _Way | None:
        while True:
            try:
                way = self._idle.pop()
            except IndexError:
                return None
            if time.monotonic() - way.used_at < MAX_IDLE_S:
                return way
            way.exchange.close()

    def _give(self, way: _Way) -> None:
        way.used_at = time.monotonic()
        if self._closed or len(self._idle) >= MAX_CONNECTIONS:
            way.exchange.close()
        else:
            self._idle.append(way)

    def _drop_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().exchange.close()

    def _connect(self) -> _Way:
        """A connection that answered with the proof. Raises ConnectError."""
        proven: list[str] = []  # where the proof came from: a later connection goes there, or nowhere

        def permit(ip: str) -> bool:
            return self._rule.permits(self._address, ip) and (not proven or ip in proven)

        tls = (self._authority or _trusted_here()) if self._address.secure else None
        exchange = Exchange(self._address, tls, {}, Traffic(), permit)
        nonce = secrets.token_hex(16)
        path = f"/v1/sessions/{self._session}/values?nonce={nonce}"
        self._busy.add(exchange)
        try:
            with exchange.request("GET", path, timeout_s=CONNECT_S) as response:
                given = response.headers.get(PROOF_HEADER, "")
                response.read(256)
            if not hmac.compare_digest(given.encode(), proof_of(self._secret, nonce).encode()):
                raise Refused("")
            proven.append(exchange.connected_to)
        except BaseException as error:
            exchange.close()
            if isinstance(error, SessionLost):
                raise Refused(f"{self._address.text} has no such session; it may have ended") from None
            if isinstance(error, (Refused, AuthError)):  # of what it answered, the client learns nothing
                raise Refused(f"{self._address.text} gives no proof that it is a peer: {NO_PROOF}") from None
            raise
        finally:
            self._busy.discard(exchange)
        return _Way(exchange, time.monotonic())


def _body(out: Outgoing) -> memoryview:
    if not out.path:
        return memoryview(out.data)
    with open(out.path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), out.nbytes, prot=mmap.PROT_READ))


def _authority(peer: Peer) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=peer.ca)
    except (ssl.SSLError, ValueError) as error:
        raise Refuse("protocol", f"peer {peer.peer}: its authority is no PEM certificate ({error})") from None


@functools.cache
def _trusted_here() -> ssl.SSLContext:
    """Takes 30 ms, so not on the event loop."""
    return ssl.create_default_context()
