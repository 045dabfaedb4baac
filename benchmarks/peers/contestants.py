"""Who takes part, and how each is started: a server on loopback, a link, a client; cut by deadlines."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remora.bench.delay_proxy import delay_proxy

HERE = Path(__file__).parent
SRC = HERE.parents[1] / "src"
WITH_US = ("setpriv", "--pdeathsig", "KILL")  # however this process ends, what it started ends too
START_S, OPEN_S, TRIAL_S = 180.0, 300.0, 60.0
_CONNECTION = re.compile(r"bytes_(sent|received):(\d+)")


Counts = dict[str, tuple[int, int]]  # bytes sent and received, by connection


class Failed(Exception):
    """A contestant did not do what it was asked, or not in time; says what it said itself."""


@dataclass(frozen=True)
class Peer:
    """One arm. server: its command behind the environment's Python, with {port}; empty: there is none.

    listens: on that port, so that a proxy can stand before it. variables: of its environment, at both ends. spins: it
    takes a core while it waits, so it is stopped while others have their turn.
    """

    name: str
    arm: str
    environment: str
    server: tuple[str, ...] = ()
    listens: bool = True
    spins: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)


# SkyTorch compresses by default, which makes its uploads ten times slower here: that is turned off.
_SKY = ("-m", "skytorch.torch.server", "--host", "127.0.0.1", "--port", "{port}")
_PLAIN = {"SKYTORCH_GRPC_COMPRESSION": "none"}
PEERS = (
    Peer("local", "local", "base", listens=False),
    Peer(
        "remora",
        "remora",
        "base",
        ("-m", "remora.cli", "serve", "--port", "{port}", "--threads", "1"),
        variables={"PYTHONPATH": str(SRC)},
    ),
    Peer("SkyTorch", "skytorch", "skytorch", _SKY, variables=_PLAIN),
    Peer(
        "SkyTorch, no speculation",
        "skytorch",
        "skytorch",
        _SKY,
        variables={**_PLAIN, "SKYTORCH_SPECULATIVE_SCALAR": "0"},
    ),
    Peer("mycelya", "mycelya", "mycelya", (str(HERE / "mycelya_link.py"), "{port}")),
    # its agents connect to addresses that they tell each other: no proxy can stand between
    Peer("torch RPC", "rpc", "base", (str(HERE / "rpc_programs.py"), "{port}"), listens=False, spins=True),
)


@dataclass(frozen=True)
class Trial:
    """found: tokens or losses. sent, received: by the client's sockets; None: not counted."""

    seconds: float
    found: list[float]
    sent: int | None
    received: int | None


class Contestant:
    """A client that is warm and answers trials. Use `contestant`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        port: int | None,
        spinning: Sequence[subprocess.Popen[bytes]] = (),
    ) -> None:
        """port: whose traffic is counted. spinning: what is stopped between trials."""
        self._process, self._port, self._spinning = process, port, spinning
        self._read = b""

    def ready(self) -> None:
        self._answer(OPEN_S)
        self._signal(signal.SIGSTOP)

    def trial(self) -> Trial:
        """Raises Failed."""
        self._signal(signal.SIGCONT)
        before = self._counted()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Failed(f"its client is gone: {error}") from None
        found = self._answer(TRIAL_S)
        after = self._counted()
        self._signal(signal.SIGSTOP)
        sent, received = _spent(before, after)
        return Trial(found["seconds"], found["found"], sent, received)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._spinning:
            process.send_signal(number)

    def _answer(self, within_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + within_s
        while b"\n" not in self._read:
            left_s = max(0.0, until - time.monotonic())
            if not select.select([self._process.stdout], [], [], left_s)[0]:
                raise Failed(f"no answer within {within_s:.0f} s")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise Failed(f"its client ended with code {self._process.wait()}")
            self._read += data
        line, self._read = self._read.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _counted(self) -> Counts:
        """Bytes sent and received so far by each connection to the port, as the kernel counts them."""
        if self._port is None:
            return {}
        command = ["ss", "-tinH", "state", "established", f"dport = :{self._port}"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        found = {}
        for name, counts in zip(lines[::2], lines[1::2], strict=True):
            both = dict(_CONNECTION.findall(counts))
            found[name.split()[2]] = int(both.get("sent", 0)), int(both.get("received", 0))
        return found


def _spent(before: Counts, after: Counts) -> tuple[int | None, int | None]:
    """Bytes sent and received between the two; None if a connection ended and took its counts with it."""
    if not before or not before.keys() <= after.keys():
        return None, None
    sent, received = (
        sum(counts[way] for counts in after.values()) - sum(counts[way] for counts in before.values())
        for way in (0, 1)
    )
    return sent, received


@contextmanager
def contestant(
    peer: Peer, rtt_ms: float, workload: str, units: int, python: Path, logs: Path
) -> Iterator[Contestant]:
    """Server, link and client, for as long as the context; the client is not yet `ready`.

    logs: the folder for what they print.

    Raises:
        Failed: the server did not start.
    """
    port = _free_port()
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **peer.variables}
    label = re.sub(r"\W+", "-", f"{workload} {peer.name} {rtt_ms:g}")
    with ExitStack() as stack:
        log = stack.enter_context((logs / f"{label}.log").open("wb"))

        def run(*arguments: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [*WITH_US, str(python), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=variables,
            )
            stack.callback(_end, process)
            return process

        if peer.server:
            server = subprocess.Popen(
                [*WITH_US, str(python), *(argument.format(port=port) for argument in peer.server)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                cwd=HERE,
            )
            stack.callback(_end, server)
            if peer.listens:
                _wait_for(port, server)
        if rtt_ms:
            assert peer.listens
            port = stack.enter_context(delay_proxy("127.0.0.1", port, rtt_ms / 2e3))
        client = run(str(HERE / "arm.py"), peer.arm, str(port), workload, str(units))
        yield Contestant(client, port if peer.listens else None, (server, client) if peer.spins else ())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise Failed(f"its server ended with code {server.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise Failed(f"its server did not listen within {START_S:.0f} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asked first, then made to."""
    process.send_signal(signal.SIGCONT)  # the stopped do not hear
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    for stop in (process.terminate, process.kill):
        stop()
        try:
            process.wait(5)
            return
        except subprocess.TimeoutExpired:
            continue


def chosen(names: Sequence[str]) -> list[Peer]:
    """The peers by name, local always; all if none is named.

    Raises:
        ValueError: there is none of a name.
    """
    known = {peer.name: peer for peer in PEERS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no peer {unknown[0]!r}; there is: {', '.join(known)}")
    return [peer for peer in PEERS if not names or peer.name in ("local", *names)]
