"""How long a byte takes to a peer and back, by raw sockets: what a link's delay really is.

python -m remora.bench.echo        prints its port; sends back what comes
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


def round_trips_s(port: int, trials: int) -> list[float]:
    """Seconds of each, one after another on one connection to 127.0.0.1, whose start is not counted."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = []
        for _ in range(trials + 1):
            started = time.perf_counter()
            peer.sendall(b"x")
            if not peer.recv(1):
                raise ConnectionError(f"the peer behind port {port} ended early")
            seconds.append(time.perf_counter() - started)
    return seconds[1:]


@contextmanager
def echo() -> Iterator[int]:
    """A peer in a process of its own; yields its port."""
    with subprocess.Popen([sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            if not line.isdecimal():
                raise RuntimeError(f"the echo did not start; it said {line!r}")
            yield int(line)
        finally:
            process.kill()


def _send_back(peer: socket.socket) -> None:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with peer, contextlib.suppress(OSError):
        while data := peer.recv(1 << 16):
            peer.sendall(data)


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=_send_back, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
