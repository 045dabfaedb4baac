"""Values from executor to executor on loopback, against a raw socket in the same run; the last line is JSON.

    PYTHONPATH=src:tests/integration python benchmarks/peer_transfers.py

A push counts from the client's message until the destination's stream, which waited for it, goes on.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import time
from multiprocessing.connection import Connection

from executor_process import executor_process
from lane import FULL, Lane, lanes

from remora.wire.messages import Barrier, Free

LARGE_NBYTES = 64 << 20
SMALL_NBYTES = 4 << 10
TRIALS = 15
SMALL_TRIALS = 500


def echo(port: Connection, nbytes: int) -> None:
    """Reads `nbytes` into the same memory again and again, and answers each time."""
    listener = socket.create_server(("127.0.0.1", 0))
    port.send(listener.getsockname()[1])
    peer, _ = listener.accept()
    memory = memoryview(bytearray(nbytes))
    while True:
        got = 0
        while got < nbytes:
            n = peer.recv_into(memory[got:])
            if not n:
                return
            got += n
        peer.sendall(b".")


class Raw:
    """The ceiling: one socket, memory that is used again at both ends."""

    def __init__(self, nbytes: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=echo, args=(theirs, nbytes))
        self.process.start()
        self.socket = socket.create_connection(("127.0.0.1", ours.recv()))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.memory = bytearray(os.urandom(1 << 10) * (nbytes >> 10))

    def seconds(self) -> float:
        started = time.perf_counter()
        self.socket.sendall(self.memory)
        self.socket.recv(1)
        return time.perf_counter() - started

    def close(self) -> None:
        self.socket.close()
        self.process.join()


async def barrier(lane: Lane) -> float:
    started = time.perf_counter()
    ticket = lane.ticket()
    await lane.send(Barrier(ticket))
    await lane.answer(ticket)
    return time.perf_counter() - started


async def push_once(a: Lane, b: Lane, site: int, segment: int, nbytes: int) -> tuple[float, float]:
    """Seconds until the destination went on, and what the source's front measured."""
    name = await a.full(site, segment, nbytes // 4, 1.0)
    await barrier(a)
    await b.wait(name)
    waiting = b.ticket()
    await b.send(Barrier(waiting))
    started = time.perf_counter()
    ticket = await a.start_push(0, name)
    await b.answer(waiting)
    seconds = time.perf_counter() - started
    pushed = await a.answer(ticket)
    for lane in (a, b):
        await lane.send(Free(name))
    return seconds, pushed.seconds


async def measure(url_a: str, url_b: str) -> dict[str, float]:
    raw = Raw(LARGE_NBYTES)
    async with lanes(url_a, url_b) as (a, b):
        await a.peer(0, b)
        site = await a.define(FULL)
        for segment in (1, 2):  # pages and connections of the first time
            first_s, _ = await push_once(a, b, site, segment, LARGE_NBYTES)
            raw.seconds()
        large = [
            (raw.seconds(), *await push_once(a, b, site, 10 + trial, LARGE_NBYTES)) for trial in range(TRIALS)
        ]
        small = [
            (await barrier(b), *await push_once(a, b, site, 100 + trial, SMALL_NBYTES))
            for trial in range(SMALL_TRIALS)
        ]
    raw.close()
    gb = LARGE_NBYTES / 1e9
    median = statistics.median
    return {
        "raw_gb_per_s": gb / median(r for r, _, _ in large),
        "push_gb_per_s": gb / median(s for _, s, _ in large),
        "first_push_gb_per_s": gb / first_s,
        "push_over_raw": median(r / s for r, s, _ in large),
        "post_over_raw": median(r / p for r, _, p in large),
        "small_p50_ms": 1e3 * median(s - r for r, s, _ in small),
        "small_post_p50_ms": 1e3 * median(p for _, _, p in small),
        "barrier_p50_ms": 1e3 * median(r for r, _, _ in small),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    with executor_process("--memory", "2GiB") as a, executor_process("--memory", "2GiB") as b:
        found = asyncio.run(measure(a.url, b.url))
    for name, value in found.items():
        print(f"{name:24}{value:10.3f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
