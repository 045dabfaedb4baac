"""Values that leave for other executors: the worker hands them over, a carrier brings them, the client hears."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from remora.errors import ConnectError, Refused
from remora.executor.front.carrier import MAX_CONNECTIONS, CannotOpen, Carried, Carrier, carrier_to
from remora.executor.front.local_carrier import LocalCarrier
from remora.executor.front.peers import PeerRule
from remora.executor.front.refusal import Refuse
from remora.executor.front.sessions import Session
from remora.executor.hop import Kind, Near, Outgoing, Sent, Spill
from remora.wire.messages import Peer, Pushed, PushFailed, ToClient

log = logging.getLogger("remora.front")

T = TypeVar("T")

MAX_THREADS = 32  # a tenant; one that its peers keep waiting delays its own pushes only
MAX_NAMED = 4  # values that a message names
SPILL_S = 60.0  # as long as a peer is waited for
MAX_SAID = 10_000  # reasons that are logged


@dataclass
class Counted:
    """What a push adds to its principal's counters."""

    nbytes: int
    seconds: float
    way: str
    missed: str


@dataclass(frozen=True)
class PushWays:
    """here: where the folders of this host's fronts are; None: no way but HTTP is taken.
    device: tells the kind of device memory that the worker can lend."""

    here: Path | None
    device: Callable[[], str]


@dataclass(eq=False)
class _Peers:
    """The executors that a session named: a carrier, or why there is none."""

    named: dict[int, Peer] = field(default_factory=dict)
    ways: dict[int, Carrier | str] = field(default_factory=dict)
    turns: dict[int, asyncio.Semaphore] = field(
        default_factory=dict
    )  # a silent peer holds up no other's pushes
    near: dict[int, bool] = field(default_factory=dict)  # what the worker knows: who opens its device memory
    under_way: int = 0
    over: bool = False


class Pushes:
    """All pushes of a front.

    Args:
        reply: gives a session's client a message, if it still has one.
        tell_worker: gives the session's worker a packet; false if there is none.
        count: adds to the counters of the session's principal.
    """

    def __init__(
        self,
        rule: PeerRule,
        ways: PushWays,
        reply: Callable[[Session, ToClient], None],
        tell_worker: Callable[[Session, Kind, msgspec.Struct], bool],
        count: Callable[[Session, Counted], None],
    ) -> None:
        self._rule, self._ways = rule, ways
        self._reply, self._tell_worker, self._count = reply, tell_worker, count
        self._spilling: dict[str, tuple[str, asyncio.Future[Outgoing]]] = {}  # by push: tenant, what comes
        self._said: set[tuple[int, int, str]] = set()  # session, peer and text: what was logged
        self._peers: dict[int, _Peers] = {}
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def name_peer(self, session: Session, peer: Peer) -> None:
        """Takes note of where a peer is. What is wrong with it is told when something is pushed there."""
        peers = self._peers.setdefault(session.number, _Peers())
        if peers.named.get(peer.peer) == peer:
            return
        peers.named[peer.peer], ways = peer, peers.ways
        older = ways.pop(peer.peer, None)
        peers.near.pop(peer.peer, None)  # nor does the worker take the new one for near
        try:
            carrier = carrier_to(peer, self._rule)
            here = self._ways.here
            ways[peer.peer] = LocalCarrier(carrier, peer, here, self._ways.device()) if here else carrier
        except Refuse as refusal:
            ways[peer.peer] = refusal.message
        if older is not None and not isinstance(older, str):
            older.close()

    def go_on(self, out: Outgoing) -> bool:
        """Takes what the worker has handed over again; false if it is not waited for any more."""
        _, spilling = self._spilling.get(out.push, ("", None))
        if spilling is None or spilling.done():
            return False
        spilling.set_result(out)
        return True

    def start(self, session: Session, out: Outgoing) -> None:
        """Begins a push; its end is told to client and worker."""
        peers = self._peers.setdefault(session.number, _Peers())
        peers.under_way += 1
        task = asyncio.get_running_loop().create_task(self._push(session, out, peers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end(self, number: int) -> None:
        """A session is over; what it has handed over is still brought."""
        peers = self._peers.get(number)
        if peers is not None:
            peers.over = True
            self._close_if_over(number, peers)

    def worker_ended(self, tenant: str | None) -> None:
        """What was asked of it does not come."""
        for asked, spilling in self._spilling.values():
            if asked == tenant and not spilling.done():
                spilling.set_exception(ConnectError("the worker here has ended"))

    def close(self) -> None:
        """Cuts everything: the front ends."""
        for number, peers in list(self._peers.items()):
            peers.over, peers.under_way = True, 0
            self._close_if_over(number, peers)
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    async def _push(self, session: Session, out: Outgoing, peers: _Peers) -> None:
        way = peers.ways.get(out.peer, f"this session has named no peer {out.peer}")
        failed: PushFailed | None = None
        try:
            if isinstance(way, str):
                failed = PushFailed(out.ticket, "refused", _text(out, f"peer {out.peer}", way))
            elif out.failed:
                failed = PushFailed(out.ticket, "value", _text(out, f"peer {way.peer}", out.failed))
            else:
                async with peers.turns.setdefault(out.peer, asyncio.Semaphore(MAX_CONNECTIONS)):
                    failed = await self._carry(session, out, way, peers)
            if failed is not None:
                self._reply(session, failed)
                if not isinstance(way, str):
                    await self._tell_peer(session, out, way, out.failed or failed.message)
        finally:
            if out.path or out.handle:
                self._tell_worker(session, Kind.SENT, Sent(out.push, reusable=failed is None))
            peers.under_way -= 1
            self._close_if_over(session.number, peers)

    async def _carry(self, session: Session, out: Outgoing, way: Carrier, peers: _Peers) -> PushFailed | None:
        try:
            carried = await self._carried(session, out, way)
        except Refused as error:
            return PushFailed(out.ticket, "refused", _text(out, f"peer {way.peer}", str(error)))
        except (ConnectError, OSError) as error:
            return PushFailed(out.ticket, "unreachable", _text(out, f"peer {way.peer}", str(error)))
        except Exception:  # whatever it is, the client must not wait for ever
            log.exception("a bug in the front, at a push")
            return PushFailed(out.ticket, "refused", _text(out, f"peer {way.peer}", "a bug in the executor"))
        nbytes = len(out.head) + out.nbytes
        self._count(session, Counted(nbytes, carried.seconds, carried.way, carried.missed))
        self._reply(session, Pushed(out.ticket, nbytes, carried.seconds))
        self._note(session, out.peer, way, carried, peers)
        return None

    async def _carried(self, session: Session, out: Outgoing, way: Carrier) -> Carried:
        """Raises ConnectError, OSError."""
        try:
            return await self._on_thread(session, way.carry, out)
        except CannotOpen as error:
            asked = asyncio.get_running_loop().create_future()
            self._spilling[out.push] = session.tenant, asked
            try:
                if not self._tell_worker(session, Kind.SPILL, Spill(out.push, error.answered)):
                    raise ConnectError("the worker here has ended") from None
                async with asyncio.timeout(SPILL_S):
                    spilled = await asked
            except TimeoutError:
                raise ConnectError(f"the worker here did not hand it over again in {SPILL_S:g} s") from None
            finally:
                del self._spilling[out.push]
            if spilled.failed:
                raise ConnectError(spilled.failed) from None
            carried = await self._on_thread(session, way.carry, spilled)
            return Carried(carried.seconds, carried.way, carried.missed or str(error))

    def _note(self, session: Session, peer: int, way: Carrier, carried: Carried, peers: _Peers) -> None:
        """Tells the worker whether the peer opens its device memory, and the log, once, what was missed."""
        near = bool(way.opens)
        if near != peers.near.get(peer, False) and peers.ways.get(peer) is way:
            peers.near[peer] = near
            self._tell_worker(session, Kind.NEAR, Near(peer, near))
        said = session.number, peer, carried.missed
        if carried.missed and said not in self._said and len(self._said) < MAX_SAID:
            self._said.add(said)
            log.warning(
                "values for peer %s, on this host, go over %s: %s", way.peer, carried.way, carried.missed
            )

    async def _tell_peer(self, session: Session, out: Outgoing, way: Carrier, reason: str) -> None:
        """So that nobody waits there; if it cannot be told, the client, which knows, has to."""
        try:
            await self._on_thread(session, way.abandon, out.names, reason[:4000])
        except (ConnectError, OSError):
            return

    async def _on_thread(self, session: Session, call: Callable[..., T], *args: object) -> T:
        threads = self._threads.get(session.tenant)
        if threads is None:
            threads = self._threads[session.tenant] = ThreadPoolExecutor(MAX_THREADS, "remora-push")
        return await asyncio.get_running_loop().run_in_executor(threads, call, *args)

    def _close_if_over(self, number: int, peers: _Peers) -> None:
        if peers.over and not peers.under_way:
            self._peers.pop(number, None)
            for way in peers.ways.values():
                if not isinstance(way, str):
                    way.close()


def _text(out: Outgoing, peer: str, why: str) -> str:
    names = [out.names[at : at + 3] for at in range(0, len(out.names), 3)]
    listed = ", ".join(str(tuple(name)) for name in names[:MAX_NAMED])
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"values {listed}{more} were not sent to {peer}: {why}"
