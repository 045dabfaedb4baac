"""A TCP proxy that delays and limits: a link of known latency and rate on any machine, without root.

Each direction holds chunks until their release time: a chunk that arrives is sent on when the link would have put it
through, plus the delay. Chunks queue behind each other at the link's rate, all connections of a direction together,
but never wait for each other's delay, so pipelined messages stay pipelined. A bounded queue passes back pressure on to
the sender, as a real bottleneck does.

    python -m remora.bench.delay_proxy HOST PORT --delay-ms 5 --mbit 1000

runs one until its standard input closes; its first line of output is the port that it listens on.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

QUEUE_NBYTES = 16 << 20
CHUNK_NBYTES = 1 << 16


class Schedule:
    """When bytes that arrive may be sent on; one for each direction of a link. Decides only: time is given."""

    def __init__(self, delay_s: float, bytes_per_s: float) -> None:
        """bytes_per_s: 0 for a link without limit."""
        if delay_s < 0 or bytes_per_s < 0:
            raise ValueError(f"a link has no delay of {delay_s} s nor a rate of {bytes_per_s} bytes/s")
        self.delay_s, self.bytes_per_s = delay_s, bytes_per_s
        self._free_s = 0.0  # when the link has put through all that came

    def release_s(self, now_s: float, nbytes: int) -> float:
        """When `nbytes` that arrived now may leave."""
        if self.bytes_per_s:
            self._free_s = max(self._free_s, now_s) + nbytes / self.bytes_per_s
            return self._free_s + self.delay_s
        return now_s + self.delay_s


class _Direction:
    """One way of one connection: a thread that reads, a thread that writes."""

    def __init__(
        self, source: socket.socket, target: socket.socket, schedule: Schedule, lock: threading.Lock
    ) -> None:
        self.source, self.target, self.schedule, self.lock = source, target, schedule, lock
        self.queue: deque[tuple[float, bytes]] = deque()
        self.queued_nbytes = 0
        self.changed = threading.Condition()
        self.broken = False
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = self.source.recv(CHUNK_NBYTES)
            except OSError:
                data = b""
            with self.lock:
                release_s = self.schedule.release_s(time.monotonic(), len(data))
            with self.changed:
                while self.queued_nbytes > QUEUE_NBYTES and not self.broken:
                    self.changed.wait()
                self.queue.append((release_s, data))
                self.queued_nbytes += len(data)
                self.changed.notify_all()
                if self.broken or not data:
                    return

    def _write(self) -> None:
        while True:
            with self.changed:
                while not self.queue:
                    self.changed.wait()
                release_s, data = self.queue.popleft()
            if (pause_s := release_s - time.monotonic()) > 0:
                time.sleep(pause_s)
            try:
                if not data:
                    self.target.shutdown(socket.SHUT_WR)
                    return
                self.target.sendall(data)
            except OSError:
                self._break()
                return
            with self.changed:
                self.queued_nbytes -= len(data)
                self.changed.notify_all()

    def _break(self) -> None:
        """The target is gone: so is, for the source, its peer."""
        with self.changed:
            self.broken = True
            self.changed.notify_all()
        with contextlib.suppress(OSError):
            self.source.shutdown(socket.SHUT_RDWR)


def serve(listener: socket.socket, target: tuple[str, int], up: Schedule, down: Schedule) -> None:
    """Passes connections on until the listener is closed. up: towards the target."""
    locks = threading.Lock(), threading.Lock()
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        try:
            executor = socket.create_connection(target, timeout=5.0)
        except OSError:
            client.close()  # nobody there: the client sees the connection end
            continue
        executor.settimeout(None)
        for end in (client, executor):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _Direction(client, executor, up, locks[0])
        _Direction(executor, client, down, locks[1])


@contextmanager
def delay_proxy(host: str, port: int, delay_s: float = 0.0, bytes_per_s: float = 0.0) -> Iterator[int]:
    """Runs a proxy to `host:port` in a process of its own (its threads would take this one's interpreter lock).

    Args:
        delay_s: each way. bytes_per_s: each way; 0: no limit.

    Yields:
        the port on 127.0.0.1 that it listens on.
    """
    command = [sys.executable, "-m", "remora.bench.delay_proxy", host, str(port)]
    command += ["--delay-ms", repr(delay_s * 1e3), "--mbit", repr(bytes_per_s * 8 / 1e6)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline().strip()
            if not line.isdecimal():
                raise RuntimeError(f"the delay proxy to {host}:{port} did not start; it said {line!r}")
            yield int(line)
        finally:
            process.stdin.close()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="A TCP proxy with delay and rate.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="each way")
    parser.add_argument("--mbit", type=float, default=0.0, help="Mbit/s each way; 0: no limit")
    options = parser.parse_args()
    sys.setswitchinterval(0.0005)  # a thread that wakes to send must not wait 5 ms for one that reads
    up, down = (Schedule(options.delay_ms / 1e3, options.mbit * 1e6 / 8) for _ in range(2))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        threading.Thread(
            target=serve, args=(listener, (options.host, options.port), up, down), daemon=True
        ).start()
        sys.stdin.read()


if __name__ == "__main__":
    main()
