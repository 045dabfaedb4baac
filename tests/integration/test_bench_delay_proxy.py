"""The delay proxy: its delay, its rate, that it keeps pipelining and order, and that ends are passed on."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from remora.bench.delay_proxy import Schedule, delay_proxy


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that gives each connection to `serve` in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(peer,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def echo(peer: socket.socket) -> None:
    with peer:
        while data := peer.recv(1 << 16):
            peer.sendall(data)


def swallow(peer: socket.socket) -> None:
    with peer:
        nbytes = 0
        while data := peer.recv(1 << 16):
            nbytes += len(data)
        peer.sendall(str(nbytes).encode())


def exactly(peer: socket.socket, nbytes: int) -> bytes:
    found = b""
    while len(found) < nbytes:
        data = peer.recv(nbytes - len(found))
        assert data, "ended early"
        found += data
    return found


def test_a_schedule_delays_each_and_queues_all() -> None:
    link = Schedule(delay_s=0.5, bytes_per_s=100)
    assert link.release_s(10.0, 100) == 11.5  # a second on the link, half a second on the way
    assert link.release_s(10.1, 50) == 12.0  # behind the first, with its own delay in parallel
    assert link.release_s(20.0, 10) == 20.6  # an idle link saves nothing up
    assert Schedule(0.25, 0).release_s(1.0, 1 << 30) == 1.25
    with pytest.raises(ValueError, match=r"-1 s"):
        Schedule(-1, 0)


def test_delay_is_each_way_and_pipelining_is_kept() -> None:
    with server(echo) as port, delay_proxy("127.0.0.1", port, delay_s=0.02) as through:
        with socket.create_connection(("127.0.0.1", through)) as peer:
            peer.sendall(b"x")
            exactly(peer, 1)  # the connection behind it is there
            round_trips = []
            for _ in range(5):
                started = time.perf_counter()
                peer.sendall(b"x")
                exactly(peer, 1)
                round_trips.append(time.perf_counter() - started)
            assert 0.040 <= min(round_trips) <= 0.060
            started = time.perf_counter()
            sent = b""
            for i in range(50):  # 5 ms apart: one at a time this would take 50 round trips, 2 s
                peer.sendall(bytes([i]))
                sent += bytes([i])
                time.sleep(0.005)
            assert exactly(peer, 50) == sent
            assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize("connections", [1, 2])
def test_the_rate_is_that_of_all_connections_together(connections: int) -> None:
    rate, nbytes = 20e6, 4 << 20
    with server(swallow) as port, delay_proxy("127.0.0.1", port, bytes_per_s=rate) as through:
        peers = [socket.create_connection(("127.0.0.1", through)) for _ in range(connections)]
        started = time.perf_counter()

        def send(peer: socket.socket) -> None:
            peer.sendall(bytes(nbytes // connections))
            peer.shutdown(socket.SHUT_WR)

        threads = [threading.Thread(target=send, args=(peer,)) for peer in peers]
        for thread in threads:
            thread.start()
        counted = [int(peer.recv(64)) for peer in peers]
        seconds = time.perf_counter() - started
        for peer in peers:
            peer.close()
    assert sum(counted) == nbytes
    assert 0.98 * nbytes / rate <= seconds <= 2 * nbytes / rate


def test_nobody_behind_it_is_seen_as_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with delay_proxy("127.0.0.1", port) as through, socket.create_connection(("127.0.0.1", through)) as peer:
        peer.settimeout(5)
        assert peer.recv(1) == b""
