"""connect, disconnect, stats, explain: the session of this process."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from remora.capture.interrupts import uninterrupted
from remora.config import ClientSettings
from remora.device.flags import announce
from remora.device.memo_store import store
from remora.device.module import torch_version
from remora.device.optimizers import cut_behind_steps
from remora.device.rng import default as default_generator_of
from remora.device.sink import bound
from remora.errors import Disconnected, RemoraError, UsageError
from remora.plan.explain import Explanation
from remora.plan.passes import Pass, passes_named
from remora.plan.planner import Planner
from remora.plan.policies import policy_named
from remora.plan.policies.policy import Policy
from remora.pool.embedded import EmbeddedExecutor
from remora.session.calibration import calibrated
from remora.session.explaining import Observed, explanation
from remora.session.pooled import PoolSession
from remora.session.recording import record
from remora.session.session import Session
from remora.session.stats import Stats
from remora.transport.http import HttpTransport
from remora.transport.interface import Transport
from remora.wire.limits import OLDEST_PROTOCOL, PROTOCOL
from remora.wire.messages import Grant, OpenSession

HEARTBEAT_S = 5.0
PEERS_SINCE = 2  # protocol

_current: Session | None = None
_last: Observed | None = None  # of the last session, if it has ended
_embedded: EmbeddedExecutor | None = None
_stop = threading.Event()
_of_parent: list[Session] = []
opened: list[Callable[[Session], None]] = []  # told of each session when it opens
_instead: Callable[[], Session] | None = None


def connect(
    url: str | Sequence[str] | None = None,
    token: str | None = None,
    placement: str | None = None,
    run_ahead: bool | None = None,
    exact: bool | None = None,
    passes: str | None = None,
) -> None:
    """Opens a session; from now on `device="remora"` lives there.

    Args:
        url: an executor's address, or a list of them. None: REMORA_URL (several with commas between them); without
            that, an executor process starts on this machine and one line says so.
        token: for all of them. None: REMORA_TOKEN.
        placement: the policy that says what goes where, see plan/policies. None: REMORA_PLACEMENT; without that,
            none on one executor and `semantic` on several. `explicit`: each executor is a device of its own, remora:0,
            remora:1, …, and "remora" is the current one of them (torch.remora.set_device).
        run_ahead: whether executors may run what the program is about to do before it does; what comes of it is used
            only where the program then did just that. None: yes, unless REMORA_RUN_AHEAD is 0.
        exact: whether only kernels run that PyTorch itself would choose. False: on a GPU, decode steps may use others
            that are faster. The first runs of each program are compared, on the same inputs, with PyTorch's; a result
            that is further away than 1/32 of its largest element (bfloat16; 1/128 float16, 1/4096 float32) is not
            used, nor are such kernels in that program again: `remora status` counts it. On a CPU nothing changes.
            None: yes, unless REMORA_EXACT is 0.
        passes: what may change plans over several executors where it is predicted to pay (plan/passes): `all`, `none`,
            or names with commas between them; `-name`: all but that one. None: REMORA_PASSES, or else none.

    Raises:
        UsageError: there is a session already.
        ConnectError, AuthError, Refused: no session within 2 s; names the address.
    """
    global _embedded
    if _current is not None:
        raise UsageError(f"already connected to {_current.transport.address}; call remora.disconnect() first")
    if _instead is not None:
        _opened(_instead(), time.monotonic() + 1.0, replace(ClientSettings(), record=None))
        return
    settings = ClientSettings()
    if run_ahead is not None:
        settings = replace(settings, run_ahead=run_ahead)
    if exact is not None:
        settings = replace(settings, exact=exact)
    addresses = _listed(url if url is not None else settings.url)
    token = token if token is not None else settings.token
    placement = placement if placement is not None else settings.placement
    chosen = passes_named(passes if passes is not None else settings.passes)
    if placement is not None or len(addresses) > 1:
        policy = policy_named(placement or "semantic")
    if not addresses:
        if _embedded is None:
            _embedded = EmbeddedExecutor()
        addresses = [_embedded.start()]
        print(
            f"remora: no REMORA_URL, so an executor on this machine is used: {addresses[0]}", file=sys.stderr
        )
        token = None
    transports = [
        HttpTransport(address, token, ca_file=settings.ca_file, mode=settings.transport)
        for address in addresses
    ]
    if placement is None and len(transports) == 1:
        open_on(transports[0], settings)
    else:
        open_pool(transports, settings, policy, chosen)


def _listed(url: str | Sequence[str] | None) -> list[str]:
    """Addresses, each once."""
    addresses = url.split(",") if isinstance(url, str) else list(url or ())
    addresses = [address.strip() for address in addresses if address.strip()]
    twice = [address for address in addresses if addresses.count(address) > 1]
    if twice:
        raise UsageError(f"{twice[0]} is given more than once: each executor is one part of the pool")
    return addresses


def rehearse(make: Callable[[], Session]) -> None:
    """From now on, `connect` reaches nobody, whatever it is given: its session is one that `make` gives."""
    global _instead
    _instead = make


def open_on(transport: Transport, settings: ClientSettings) -> Session:
    """Opens the process's session over any transport, which is closed if that fails."""
    deadline = time.monotonic() + settings.connect_timeout_s
    try:
        grant = transport.open_session(wants(exact=settings.exact), settings.connect_timeout_s)
        _as_asked(grant, settings, transport.address)
        session = Session(transport, grant, settings)
    except BaseException:
        transport.close()
        raise
    return _opened(session, deadline, settings)


def open_pool(
    transports: Sequence[Transport],
    settings: ClientSettings,
    policy: Policy,
    passes: Sequence[Pass] = (),
) -> Session:
    """Opens the process's session over several executors; all of the transports are closed if one fails."""
    deadline = time.monotonic() + settings.connect_timeout_s
    opened: list[tuple[Transport, Grant]] = []
    try:
        for number, transport in enumerate(transports):
            asked = wants(number if policy.indexed else 0, settings.exact)
            opened.append((transport, transport.open_session(asked, settings.connect_timeout_s)))
            _as_asked(opened[-1][1], settings, transport.address)
        alike([(grant.device.partition(":")[0], transport.address) for transport, grant in opened])
        for transport, grant in opened if len(opened) > 1 else ():
            if grant.protocol < PEERS_SINCE:
                raise UsageError(
                    f"executor {transport.address} speaks protocol {grant.protocol}, and values go from executor to "
                    f"executor since {PEERS_SINCE} only: install this version of Remora there, or connect to it alone"
                )
        planner = Planner(policy, calibrated(opened, settings, wants()), passes if policy.optimises else ())
        session = PoolSession(opened, settings, planner)
    except BaseException:
        for transport, grant in opened:
            with suppress(RemoraError, OSError):
                transport.close_session(grant, 1.0)
        for transport in transports:
            transport.close()
        raise
    return _opened(session, deadline, settings)


def alike(devices: Sequence[tuple[str, str]]) -> None:
    """Raises UsageError if executors, given as kind and name, may not be of one pool."""
    kinds = dict(devices)
    if len(kinds) > 1:
        what = " and ".join(f"{kind} ({name})" for kind, name in kinds.items())
        raise UsageError(
            f"the executors of one pool must compute alike, but these are {what}: results and random numbers "
            "would depend on where a row runs; connect to those of one kind"
        )


def _as_asked(grant: Grant, settings: ClientSettings, address: str) -> None:
    """Raises UsageError if an executor does not know what was asked for."""
    if grant.exact != settings.exact:
        raise UsageError(
            f"executor {address} does not know exact=False: install this version of Remora there, or leave it out"
        )


def wants(index: int = 0, exact: bool = True) -> OpenSession:
    """index: of the device that the executor is."""
    return OpenSession(
        protocol=PROTOCOL,
        oldest_protocol=OLDEST_PROTOCOL,
        torch=torch_version(),
        client=f"{socket.gethostname()[:48]}:{os.getpid()}",
        seed=default_generator_of(index).initial_seed(),
        exact=exact,
    )


def _opened(session: Session, deadline: float, settings: ClientSettings) -> Session:
    """Makes an open session the process's own."""
    global _current, _stop
    try:
        for lane in session.lanes:
            lane.link.open(max(0.1, deadline - time.monotonic()))
        session.op_table()  # on disk after the first time; now, so that no op waits for it
        store.load()
        record(session, settings, wants())
    except BaseException as error:
        session.close(Disconnected(str(error)))
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
    global _current, _last
    session, _current = _current, None
    if session is None:
        return
    _stop.set()
    _last = session.observed() if isinstance(session, PoolSession) else None
    reason = Disconnected(
        f"session {session.grant.session} on {session.transport.address} has ended (remora.disconnect()), "
        "and its tensors with it; remora.connect() opens another"
    )
    bound.unbind(reason)
    session.close(reason)


def stats() -> Stats:
    """Counters of the session so far; subtract an earlier snapshot. Zeros before a session."""
    return _current.stats() if _current is not None else Stats()


def explain() -> Explanation:
    """What lives where, what moved, and why: of this session, or of the last one after disconnect().

    Raises:
        UsageError: there is none, or it is on one executor and nothing was placed.
    """
    if isinstance(_current, PoolSession):
        return explanation(_current.observed())
    if _current is None and _last is not None:
        return explanation(_last)
    what = "there is no session" if _current is None else f"all runs on {_current.transport.address}"
    raise UsageError(
        f'{what}, so nothing was placed that could be explained; connect with placement="semantic", or with several '
        "executors"
    )


def current() -> Session | None:
    """The session of this process, for tools that watch it."""
    return _current


def _beat(session: Session, stop: threading.Event) -> None:
    every_s = min(HEARTBEAT_S, session.grant.lease_s / 3)
    while not stop.wait(every_s):
        session.idle()


def _forked() -> None:
    """In a child process: the session belongs to the parent, and its connection must not be touched."""
    global _current, _embedded, _last, _stop
    for each in (bound, store, uninterrupted):
        each.forked()
    session, _current = _current, None
    executor, _embedded = _embedded, None
    _last = None
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
