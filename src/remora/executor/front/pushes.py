"""Values that leave for other executors: the worker hands them over, a carrier brings them, the client hears."""

from __future__ import annotations

import asyncio
import logging
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from remora.errors import ConnectError, Refused
from remora.executor.front.carrier import Carrier, carrier_to
from remora.executor.front.peers import PeerRule
from remora.executor.front.refusal import Refuse
from remora.executor.front.sessions import Session
from remora.executor.hop import Outgoing, Sent
from remora.wire.messages import Peer, Pushed, PushFailed, ToClient

log = logging.getLogger("remora.front")

T = TypeVar("T")

MAX_THREADS = 8  # a tenant; one that its peers keep waiting delays its own pushes only
MAX_NAMED = 4  # values that a message names


@dataclass
class Counted:
    """What a push adds to its principal's counters."""

    nbytes: int
    seconds: float


@dataclass(eq=False)
class _Peers:
    """The executors that a session named: a carrier, or why there is none."""

    named: dict[int, Peer] = field(default_factory=dict)
    ways: dict[int, Carrier | str] = field(default_factory=dict)
    under_way: int = 0
    over: bool = False


class Pushes:
    """All pushes of a front.

    Args:
        reply: gives a session's client a message, if it still has one.
        release: tells the session's worker that a push is over.
        count: adds to the counters of the session's principal.
    """

    def __init__(
        self,
        rule: PeerRule,
        reply: Callable[[Session, ToClient], None],
        release: Callable[[Session, Sent], None],
        count: Callable[[Session, Counted], None],
    ) -> None:
        self._rule = rule
        self._reply, self._release, self._count = reply, release, count
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
        try:
            ways[peer.peer] = carrier_to(peer, self._rule)
        except Refuse as refusal:
            ways[peer.peer] = refusal.message
        if older is not None and not isinstance(older, str):
            older.close()

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
                failed = await self._carry(session, out, way)
            if failed is not None:
                self._reply(session, failed)
                if not isinstance(way, str):
                    await self._tell_peer(session, out, way, out.failed or failed.message)
        finally:
            self._release(session, Sent(out.push, reusable=failed is None))
            peers.under_way -= 1
            self._close_if_over(session.number, peers)

    async def _carry(self, session: Session, out: Outgoing, way: Carrier) -> PushFailed | None:
        try:
            body = _body(out)
            seconds = await self._on_thread(session, way.carry, out.head, body)
        except Refused as error:
            return PushFailed(out.ticket, "refused", _text(out, f"peer {way.peer}", str(error)))
        except (ConnectError, OSError) as error:
            return PushFailed(out.ticket, "unreachable", _text(out, f"peer {way.peer}", str(error)))
        except Exception:  # whatever it is, the client must not wait for ever
            log.exception("a bug in the front, at a push")
            return PushFailed(out.ticket, "refused", _text(out, f"peer {way.peer}", "a bug in the executor"))
        nbytes = len(out.head) + out.nbytes
        self._count(session, Counted(nbytes, seconds))
        self._reply(session, Pushed(out.ticket, nbytes, seconds))
        return None

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


def _body(out: Outgoing) -> memoryview:
    if not out.path:
        return memoryview(out.data)
    with open(out.path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), out.nbytes, prot=mmap.PROT_READ))


def _text(out: Outgoing, peer: str, why: str) -> str:
    names = [out.names[at : at + 3] for at in range(0, len(out.names), 3)]
    listed = ", ".join(str(tuple(name)) for name in names[:MAX_NAMED])
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"values {listed}{more} were not sent to {peer}: {why}"
