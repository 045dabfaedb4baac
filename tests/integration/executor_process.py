"""A real executor as a child process, a proxy that cuts its connections, and programs that use it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from remora.transport.http import HttpTransport
from remora.wire.messages import Status

READY = "remora executor ready at "
# Another Python, with another PyTorch, for the executors: `make test-mixed`.
EXECUTOR_PYTHON = os.environ.get("REMORA_TEST_EXECUTOR_PYTHON") or sys.executable


SERVE = """
import sys, typer
from remora.cli.serve import serve
from remora.executor.front import worker_link
worker, stuck_s = sys.argv.pop(1), float(sys.argv.pop(1))
if worker:
    worker_link.WORKER = (sys.executable, worker)
worker_link.STUCK_S = stuck_s or worker_link.STUCK_S
typer.run(serve)
"""


class ExecutorProcess:
    """`remora serve` with one thread on a free port.

    worker: a script that takes the worker's place. stuck_s: how long one may give no sign of life.
    """

    def __init__(self, *options: str, worker: Path | None = None, stuck_s: float = 0.0) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        patched = ["-c", SERVE, str(worker or ""), str(stuck_s)]
        serve = patched if worker or stuck_s else ["-m", "remora.cli", "serve"]
        command = [EXECUTOR_PYTHON, *serve, "--threads", "1", "--device", "cpu"]
        if "--port" not in options:
            command += ["--port", "0"]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=self.log, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line.startswith(READY):
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            said = self.said()
            self.log.close()
            raise AssertionError(f"{line!r}; {said}")
        self.url = line.removeprefix(READY)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def status(self, token: str | None = None) -> Status:
        transport = HttpTransport(self.url, token)
        try:
            return transport.status(5.0)
        finally:
            transport.close()

    def worker_pids(self) -> list[int]:
        """The children of the front that are workers, oldest first."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(c) for c in children if "worker" in Path(f"/proc/{c}/cmdline").read_text()]

    def worker_pid(self) -> int:
        """The one child of the front that is a worker."""
        (pid,) = self.worker_pids()
        return pid

    def kill_worker(self) -> None:
        os.kill(self.worker_pid(), signal.SIGKILL)

    def wait_worker(self, n: int) -> None:
        """Until the `n`-th worker is ready."""
        until = time.monotonic() + 60
        while self.status().workers_started < n:
            assert time.monotonic() < until, self.said()
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


@contextmanager
def executor_process(
    *options: str, worker: Path | None = None, stuck_s: float = 0.0
) -> Iterator[ExecutorProcess]:
    executor = ExecutorProcess(*options, worker=worker, stuck_s=stuck_s)
    try:
        yield executor
    finally:
        executor.stop()


def status_until(
    executor: ExecutorProcess, holds, token: str | None = None, within_s: float = 10.0
) -> Status:
    """The first status for which `holds`."""
    until = time.monotonic() + within_s
    while not holds(status := executor.status(token)):
        assert time.monotonic() < until, msgspec.to_builtins(status)
        time.sleep(0.05)
    return status


class Proxy:
    """Passes TCP connections on to a port, until it is told to cut them."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self.budget: int | None = None  # bytes until the next cut
        self.cuts = 0
        self.closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Resets every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            self.cuts += bool(pairs)
            for pair in pairs:
                for sock in pair:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    sock.close()

    def close(self) -> None:
        self.closed = True
        self._thread.join()
        self.cut()
        self._listener.close()

    def _run(self) -> None:
        while not self.closed:
            with self._lock:
                sockets = [sock for pair in self._pairs for sock in pair]
                other = {a: b for pair in self._pairs for a, b in (pair, pair[::-1])}
            try:
                readable, _, _ = select.select([self._listener, *sockets], [], [], 0.005)
            except (OSError, ValueError):  # cut meanwhile
                continue
            for sock in readable:
                if sock is self._listener:
                    client, _ = self._listener.accept()
                    with suppress(OSError):
                        executor = socket.create_connection(("127.0.0.1", self._target))
                        for end in (client, executor):
                            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        with self._lock:
                            self._pairs.append((client, executor))
                        continue
                    client.close()
                else:
                    self._pass_on(sock, other[sock])

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
            if self.budget is not None and len(data) > self.budget:
                target.sendall(data[: self.budget])
                self.budget = None
                self.cut()
                return
            if self.budget is not None:
                self.budget -= len(data)
            if data:
                target.sendall(data)
                return
        except OSError:
            pass
        with self._lock:
            self._pairs = [pair for pair in self._pairs if source not in pair]
        for sock in (source, target):
            sock.close()
