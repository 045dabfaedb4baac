"""connect, disconnect, stats: the session of this process."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

from remora.capture.interrupts import uninterrupted
from remora.config import ClientSettings
from remora.device.flags import announce
from remora.device.memo_store import store
from remora.device.module import torch_version
from remora.device.optimizers import cut_behind_steps
from remora.device.rng import default as default_generator
from remora.device.sink import bound
from remora.errors import Disconnected, NotSupported, UsageError
from remora.pool.embedded import EmbeddedExecutor
from remora.session.session import Session
from remora.session.stats import Stats
from remora.transport.http import HttpTransport
from remora.transport.interface import Transport
from remora.wire.limits import OLDEST_PROTOCOL, PROTOCOL
from remora.wire.messages import OpenSession

HEARTBEAT_S = 5.0

_current: Session | None = None
_embedded: EmbeddedExecutor | None = None
_stop = threading.Event()
_of_parent: list[Session] = []
opened: list[Callable[[Session], None]] = []  # told of each session when it opens


def connect(url: str | Sequence[str] | None = None, token: str | None = None) -> None:
    """Opens a session; from now on `device="remora"` lives there.

    Args:
        url: an executor's address, or a list with one. None: REMORA_URL; without that, an executor process
            starts on this machine and one line says so.
        token: None: REMORA_TOKEN.

    Raises:
        UsageError: there is a session already.
        ConnectError, AuthError, Refused: no session within 2 s; names the address.
    """
    global _embedded
    if _current is not None:
        raise UsageError(f"already connected to {_current.transport.address}; call remora.disconnect() first")
    settings = ClientSettings()
    address = _one(url if url is not None else settings.url)
    token = token if token is not None else settings.token
    if address is None:
        if _embedded is None:
            _embedded = EmbeddedExecutor()
        address = _embedded.start()
        print(f"remora: no REMORA_URL, so an executor on this machine is used: {address}", file=sys.stderr)
        token = None
    transport = HttpTransport(address, token, ca_file=settings.ca_file, mode=settings.transport)
    open_on(transport, settings)


def _one(url: str | Sequence[str] | None) -> str | None:
    if url is None or isinstance(url, str):
        return url
    if len(url) != 1:
        raise NotSupported(f"{len(url)} executors: placement over several is not there yet; give one address")
    return url[0]


def open_on(transport: Transport, settings: ClientSettings) -> Session:
    """Opens the process's session over any transport, which is closed if that fails."""
    global _current, _stop
    wants = OpenSession(
        protocol=PROTOCOL,
        oldest_protocol=OLDEST_PROTOCOL,
        torch=torch_version(),
        client=f"{socket.gethostname()[:48]}:{os.getpid()}",
        seed=default_generator.initial_seed(),
    )
    deadline = time.monotonic() + settings.connect_timeout_s
    try:
        grant = transport.open_session(wants, settings.connect_timeout_s)
        session = Session(transport, grant, settings)
        try:
            session.link.open(max(0.1, deadline - time.monotonic()))
            session.op_table()  # on disk after the first time; now, so that no op waits for it
        except BaseException as error:
            session.close(Disconnected(str(error)))
            raise
    except BaseException:
        transport.close()
        raise
    _current, _stop = session, threading.Event()
    bound.bind(session.recorder, session)
    cut_behind_steps()
    announce(session)
    beat = threading.Thread(target=_beat, args=(session, _stop), name="remora-heartbeat", daemon=True)
    beat.start()
    for tell in opened:
        tell(session)
    return session


def disconnect() -> None:
    """Ends the session; its tensors cannot be used any more. Without a session: nothing happens."""
    global _current
    session, _current = _current, None
    if session is None:
        return
    _stop.set()
    reason = Disconnected(
        f"session {session.grant.session} on {session.transport.address} has ended (remora.disconnect()), "
        "and its tensors with it; remora.connect() opens another"
    )
    bound.unbind(reason)
    session.close(reason)


def stats() -> Stats:
    """Counters of the session so far; subtract an earlier snapshot. Zeros before a session."""
    return _current.stats() if _current is not None else Stats()


def current() -> Session | None:
    """The session of this process, for tools that watch it."""
    return _current


def _beat(session: Session, stop: threading.Event) -> None:
    every_s = min(HEARTBEAT_S, session.grant.lease_s / 3)
    while not stop.wait(every_s):
        session.idle()


def _forked() -> None:
    """In a child process: the session belongs to the parent, and its connection must not be touched."""
    global _current, _embedded, _stop
    for each in (bound, store, uninterrupted):
        each.forked()
    session, _current = _current, None
    executor, _embedded = _embedded, None
    _stop = threading.Event()
    if executor is not None:
        executor.forget()
    if session is not None:
        _of_parent.append(session)  # closing what it holds would be heard by the executor
        reason = Disconnected(
            f"session {session.grant.session} belongs to process {session.pid}, of which this one is a fork; "
            "call remora.connect() here for a session of its own"
        )
        session.recorder.lock = threading.RLock()
        session.recorder.closed = reason
        bound.unbind(reason)


def _at_exit() -> None:
    disconnect()
    if _embedded is not None:
        _embedded.stop()


def install() -> None:
    """Called when the device is registered. Idempotent."""
    if bound.start is not None:
        return
    bound.start = connect
    atexit.register(_at_exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)
