"""What a link really carries: a raw socket, nothing else. Measured in the run whose numbers it is to bound.

python -m remora.bench.raw_rate receive HOST         prints its port; counts what each connection sends
python -m remora.bench.raw_rate send HOST PORT N     sends N bytes; prints the seconds until all had arrived
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_BUFFER_NBYTES = 1 << 18


def receive(listener: socket.socket) -> None:
    """Answers each connection, at its end, with the number of bytes that came."""
    buffer = bytearray(_BUFFER_NBYTES)
    while True:
        peer, _ = listener.accept()
        with peer:
            nbytes = 0
            while got := peer.recv_into(buffer):
                nbytes += got
            peer.sendall(nbytes.to_bytes(8, "big"))


def send(host: str, port: int, nbytes: int) -> float:
    """Seconds from the first byte until the receiver has the last, a round trip included.

    Raises:
        ConnectionError: it did not get them all.
    """
    block = memoryview(bytes(_BUFFER_NBYTES))
    with socket.create_connection((host, port), timeout=60) as peer:
        started = time.perf_counter()
        for at in range(0, nbytes, _BUFFER_NBYTES):
            peer.sendall(block[: nbytes - at])
        peer.shutdown(socket.SHUT_WR)
        answer = peer.recv(8)
        seconds = time.perf_counter() - started
    if int.from_bytes(answer, "big") != nbytes:
        raise ConnectionError(f"{host}:{port} got {int.from_bytes(answer, 'big')} of {nbytes} bytes")
    return seconds


@contextmanager
def receiver(host: str, inside: Sequence[str] = ()) -> Iterator[int]:
    """A receiver in a process of its own, behind the words `inside`; yields its port."""
    command = [*inside, sys.executable, "-m", "remora.bench.raw_rate", "receive", host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            if not line.isdecimal():
                raise RuntimeError(f"the receiver on {host} did not start; it said {line!r}")
            yield int(line)
        finally:
            process.kill()


def sent_from(inside: Sequence[str], host: str, port: int, nbytes: int) -> float:
    """As `send`, from a process behind the words `inside`."""
    command = [*inside, sys.executable, "-m", "remora.bench.raw_rate", "send", host, str(port), str(nbytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    if done.returncode:
        raise RuntimeError(f"the sender to {host}:{port} failed: {done.stderr.strip()[-500:]}")
    return float(done.stdout)


def main() -> None:
    match sys.argv[1:]:
        case ["receive", host]:
            with socket.create_server((host, 0)) as listener:
                print(listener.getsockname()[1], flush=True)
                receive(listener)
        case ["send", host, port, nbytes]:
            print(send(host, int(port), int(nbytes)))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
