"""Executors on links of known rate, measured in the same run: what every experiment over several executors uses.

Three kinds, best first: `netns` (namespaces shaped by the kernel: between executors too, counted by the kernel),
`proxy` (a user-space proxy before each executor: rate and delay, on any machine), `loopback` (no limit).
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from remora.bench import raw_rate
from remora.bench.delay_proxy import delay_proxy
from remora.bench.forks import Fork
from remora.bench.harness import Impossible, check_physics
from remora.bench.netns import BURST_NBYTES, CLIENT, Network, NoNamespaces, Traffic, network
from remora.pool.embedded import EmbeddedExecutor
from remora.session.connect import current
from remora.session.pooled import PoolSession

KINDS = ("netns", "proxy", "loopback")
HOSTS_S = 60.0
GIGABIT = 1e9 / 8
CALIBRATION_S = 0.25
_MOST_NBYTES = 256 << 20
_TRIALS = 3


@dataclass(frozen=True)
class Link:
    """What was asked for, each way. bytes_per_s: 0 for no limit."""

    bytes_per_s: float = GIGABIT
    delay_s: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """What raw sockets reached, bytes per second, medians: the bound of what anything may claim.

    peers: from executor 0 to executor 1; None where there is one executor, or no link of its own between two.
    """

    up: float
    down: float | None
    peers: float | None

    @property
    def fastest(self) -> float:
        return max(rate for rate in (self.up, self.down, self.peers) if rate is not None)


@dataclass
class Executors:
    """Executors that run. about: the kind, and why not a better one. traffic: bytes so far; None: nobody counts."""

    urls: list[str]
    token: str | None
    kind: str
    about: str
    link: Link
    rates: Calibration
    traffic: Callable[[], Traffic] | None = None
    processes: list[EmbeddedExecutor] = field(default_factory=list)

    def check(self, what: str, passed: Traffic, seconds: float) -> None:
        """Raises Impossible if a port of the bridge passed more than a raw socket could in that time."""
        nbytes = max(0, passed.busiest - 2 * BURST_NBYTES)
        check_physics(what, nbytes, seconds, self.rates.fastest)


@contextmanager
def executors(
    count: int, link: Link | None = None, *options: str, kind: str | None = None, calibrate: bool = True
) -> Iterator[Executors]:
    """Starts `count` executors of one thread, and ends them and their links with the context.

    Args:
        link: None: no limit, over loopback.
        options: of `remora serve`, for all of them.
        kind: one of KINDS; None: the best that this machine can do, and the result says which that is.
        calibrate: off, the rates are those asked for, and the physics check is as good as they are.

    Raises:
        NoNamespaces: `netns` was asked for by name and cannot be had.
        ValueError: the kind cannot have such a link.
    """
    chosen, why = _choose(kind, link)
    with ExitStack() as stack:
        if chosen == "netns":
            assert link is not None
            try:
                made = stack.enter_context(network(count, link.bytes_per_s))
            except NoNamespaces as error:
                if kind == "netns":
                    raise
                chosen, why = "proxy", f"no namespaces: {error}"
            else:
                yield _in_namespaces(stack, made, link, options, calibrate)
                return
        started = _start(stack, [EmbeddedExecutor("--threads", "1", *options) for _ in range(count)])
        urls = [one.address for one in started]
        link = link or Link(0.0)
        if chosen == "proxy":
            urls = [stack.enter_context(proxied(url, link)) for url in urls]
        rates = _calibrate_one(link if chosen == "proxy" else Link(0.0)) if calibrate else _asked(link)
        yield Executors(urls, None, chosen, f"{chosen}: {why}", link, rates, None, started)


@contextmanager
def on_hosts(urls: Sequence[str]) -> Iterator[Executors]:
    """Executors that run on hosts of their own; the token is REMORA_TOKEN. Their network is what it is.

    Its rates are those that a session measures when it opens a pool.

    Raises:
        ArmFailed: no session there; holds the reason.
    """
    asked = Fork("rates", lambda: _Rates(urls))
    try:
        rates = asked.ask("measured", HOSTS_S)
    finally:
        asked.close()
    yield Executors(list(urls), None, "hosts", f"hosts: {', '.join(urls)}", Link(0.0), Calibration(**rates))


class _Rates:
    """What a fork asks hosts that it opens a session on: this process itself never connects."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = urls

    def measured(self) -> dict[str, float | None]:
        import remora

        remora.connect(self.urls, placement="local")
        session = current()
        assert isinstance(session, PoolSession)
        pool = session.placement.planner.pool
        up = pool.client[0].bytes_per_s
        return {"up": up, "down": up, "peers": pool.link(0, 1).bytes_per_s if len(self.urls) > 1 else None}

    def close(self) -> None:
        import remora

        remora.disconnect()


def _choose(kind: str | None, link: Link | None) -> tuple[str, str]:
    if kind is not None and kind not in KINDS:
        raise ValueError(f"there is no kind of link {kind!r}; there is: {', '.join(KINDS)}")
    if link is None or (not link.bytes_per_s and not link.delay_s):
        if kind in ("netns", "proxy"):
            raise ValueError(f"{kind} needs a rate or a delay")
        return "loopback", "no limit was asked for"
    if kind == "loopback":
        raise ValueError("loopback has no rate and no delay of its own; ask for netns or proxy")
    if kind == "netns" and (link.delay_s or not link.bytes_per_s):
        raise ValueError("namespaces have a rate and no delay; ask for proxy")
    if kind is not None:
        return kind, "asked for"
    return ("proxy", "a delay was asked for") if link.delay_s or not link.bytes_per_s else ("netns", "")


def _in_namespaces(
    stack: ExitStack, made: Network, link: Link, options: Sequence[str], calibrate: bool
) -> Executors:
    rates = _calibrate_network(made) if calibrate else _asked(link)
    token = secrets.token_urlsafe(24)  # their addresses are not loopback, so they ask for one
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remora-bench-")))
    token_file = folder / "tokens"
    token_file.touch(mode=0o600)
    token_file.write_text(f"{token} bench/links\n")
    # on one host executors would pass values to each other beside the links
    serve = ("--threads", "1", "--no-same-host", "--token-file", str(token_file), *options)
    members = range(made.members)
    started = _start(
        stack,
        [EmbeddedExecutor("--host", made.address(at), *serve, behind=made.inside(at)) for at in members],
    )
    about = f"netns: {link.bytes_per_s * 8 / 1e9:g} Gbit/s to and from each, by tbf"
    return Executors(
        [one.address for one in started], token, "netns", about, link, rates, made.traffic, started
    )


def _start(stack: ExitStack, made: list[EmbeddedExecutor]) -> list[EmbeddedExecutor]:
    for one in made:
        stack.callback(one.stop)
    with ThreadPoolExecutor(len(made)) as starting:
        list(starting.map(EmbeddedExecutor.start, made))
    return made


@contextmanager
def proxied(url: str, link: Link) -> Iterator[str]:
    """The address of an executor behind a proxy of its own."""
    where = urlsplit(url)
    assert where.hostname is not None
    assert where.port is not None
    with delay_proxy(where.hostname, where.port, link.delay_s, link.bytes_per_s) as port:
        yield f"http://127.0.0.1:{port}"


def _asked(link: Link) -> Calibration:
    rate = link.bytes_per_s or float("inf")
    return Calibration(rate, rate, None)


def _calibrate_network(made: Network) -> Calibration:
    nbytes = _calibration_nbytes(made.bytes_per_s)
    up = _rate(made, CLIENT, 0, nbytes)
    down = _rate(made, 0, CLIENT, nbytes)
    return Calibration(up, down, _rate(made, 0, 1, nbytes) if made.members > 1 else None)


def _rate(made: Network, source: int, target: int, nbytes: int) -> float:
    host = made.address(target)
    with raw_rate.receiver(host, made.inside(target)) as port:
        trials = [
            nbytes / raw_rate.sent_from(made.inside(source), host, port, nbytes) for _ in range(_TRIALS)
        ]
    rate = statistics.median(trials)
    if rate > made.bytes_per_s * 1.05:
        raise Impossible(f"the link of {made.bytes_per_s:.3g} bytes/s carried {rate:.3g}: it is not shaped")
    return rate


def _calibrate_one(link: Link) -> Calibration:
    """Over loopback, or a proxy like those before the executors: towards the executor."""
    nbytes = _calibration_nbytes(link.bytes_per_s)
    with ExitStack() as stack:
        port = stack.enter_context(raw_rate.receiver("127.0.0.1"))
        if link.bytes_per_s or link.delay_s:
            port = stack.enter_context(delay_proxy("127.0.0.1", port, link.delay_s, link.bytes_per_s))
        trials = [nbytes / raw_rate.send("127.0.0.1", port, nbytes) for _ in range(_TRIALS)]
    return Calibration(statistics.median(trials), None, None)


def _calibration_nbytes(bytes_per_s: float) -> int:
    if not bytes_per_s:
        return _MOST_NBYTES
    return int(min(max(bytes_per_s * CALIBRATION_S, 1 << 20), _MOST_NBYTES))
