"""Random loops, other ones in each run: all that they sync and leave is bit for bit what the CPU makes.

In this process, with an executor that runs ahead by random distances, replies that are late, connections that are
cut, and a client that now and then does what nobody could foresee. RANDOM_LOOPS_SEED=n repeats a run, RANDOM_LOOPS=n
runs so many loops; a failing test prints the one loop.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from loops import Loop

import remora
from late_reading import LateReading
from remora.config import ClientSettings
from remora.session import link
from remora.session.connect import open_on
from remora.transport.faulty import Delay, Fault, FaultyTransport, Way, random_script
from remora.transport.inprocess import InProcessTransport
from remora.wire.codec import encode
from remora.wire.limits import PROTOCOL
from remora.wire.messages import Grant, OpenSession, ToClient
from worker_endpoint import WorkerEndpoint

LOOPS = int(os.environ.get("RANDOM_LOOPS") or 150)
REAL_LOOPS = 40  # through a real executor
PER_SESSION = 50
FRAMES = 6000  # of a session, at most


class Eager(WorkerEndpoint):
    """Runs ahead by a random number of messages after each frame, as an executor does that is faster or slower, and
    has answers at once or while it goes on."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder)
        self.rng = rng
        self.device.reading = self.reading
        self.drawn = torch.default_generator.get_state()

    def open(self, wants: OpenSession) -> Grant:
        return msgspec.structs.replace(super().open(wants), protocol=PROTOCOL)

    def step(self, frame: bytes) -> None:
        with self.apart(), torch.inference_mode():
            super().step(frame)
            ahead = self.session.ahead
            for _ in range(self.rng.choice((0, 0, 1, 2, 3, 8, 40)) if ahead is not None else 0):
                self.reply(ahead.answers(wait=False))
                coming = ahead.coming()
                if coming is None:
                    break
                self.reply(ahead.go(coming))
            if ahead is not None and (ahead.client_waits or self.rng.random() < 0.5):
                self.reply(ahead.answers())

    def reply(self, replies: list[ToClient]) -> None:
        if replies:
            out = self.stream.send(encode(replies))
            if self.port is not None:
                self.port.reply(out)

    def reading(self, tensors: Sequence[torch.Tensor], bounds: Any) -> LateReading | None:
        if self.rng.random() < 0.5:
            return None
        return LateReading(tensors, bounds, lambda: self.rng.random() < 0.3)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """The default generator is the executor's: a client that shares the process seeds its own."""
        generator = torch.default_generator
        clients = generator.get_state()
        generator.set_state(self.drawn)
        yield
        self.drawn = generator.get_state()
        generator.set_state(clients)


def late(rng: random.Random) -> list[Fault]:
    """Replies that the client does not see until it waits for them."""
    return [Delay(1, Way.REPLIES, n, 0.001) for n in range(1, FRAMES) if rng.random() < 0.3]


def cut(rng: random.Random) -> list[Fault]:
    return list(random_script(rng, channels=20, frames=60))


def none(rng: random.Random) -> list[Fault]:
    return []


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(link, "PAUSES_S", (0.0,))
    monkeypatch.setattr(link, "PING_AFTER_S", 0.01)
    monkeypatch.setattr(link, "SILENCE_S", 0.1)
    monkeypatch.setattr(link, "to_stderr", lambda address: lambda text: None)


@pytest.fixture
def patient(monkeypatch):
    """Both ends are in this process, and go on believing a client that never does anything for long."""
    monkeypatch.setattr("remora.runahead.predictor.MAX_EVIDENCE", 1)
    monkeypatch.setattr("remora.runahead.depth.FIRST_DEPTH", 8)  # replies cost no time here


@pytest.fixture
def seed(record_property):
    seed = int(os.environ.get("RANDOM_LOOPS_SEED") or random.SystemRandom().randrange(10**6))
    record_property("RANDOM_LOOPS_SEED", seed)
    return seed


@pytest.mark.parametrize("faults", [none, late, cut])
@pytest.mark.parametrize("run_ahead", [True, False])
@pytest.mark.usefixtures("patient")
def test_random_loops_are_equal_to_the_cpu(run_ahead, faults, seed):
    share = LOOPS * (3 if run_ahead else 1) // 12 + 1
    for first in range(0, share, PER_SESSION):
        rng = random.Random(f"{seed} {first} {faults.__name__}")
        loops = [Loop(seed * 10_000 + n) for n in range(first, min(share, first + PER_SESSION))]
        all_expected = [run(loop, "cpu") for loop in loops]  # before, as the session has a thread of its own
        with tempfile.TemporaryDirectory() as folder:
            inner = InProcessTransport(Eager(Path(folder), rng))
            transport = FaultyTransport(inner, faults(rng), lambda s: None)
            session = open_on(transport, ClientSettings(grace_s=60.0, run_ahead=run_ahead))
            session.link.notice = lambda text: None
            try:
                for loop, expected in zip(loops, all_expected, strict=True):
                    check(loop, expected, unforeseen(rng))
            finally:
                remora.disconnect()


def test_random_loops_on_a_real_executor(connected, seed):
    rng = random.Random(seed)
    for n in range(REAL_LOOPS):
        loop = Loop(seed * 10_000 + 9_999 - n)
        check(loop, run(loop, "cpu"), unforeseen(rng))


def unforeseen(rng: random.Random) -> Callable[[int], None]:
    """What a client may do between two steps that changes nothing which the loop sees."""

    def pause(step: int) -> None:
        chance = rng.random() if step >= 0 else 0.0
        if chance < 0.03:
            torch.full((1,), float(step), device="remora").item()
        elif chance < 0.05:
            torch.remora.synchronize()
        elif chance < 0.07:
            torch.ones(3, device="remora").add_(1)  # and nobody asks
        elif chance < 0.08:
            torch.tensor([step, 2]).to("remora")

    return pause


def run(loop: Loop, device: str, pause: Callable[[int], None] = lambda step: None) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return loop.run(device, pause)
        except Exception as error:
            raise AssertionError(f"loop {loop.seed}: {error!r}\n{loop.source}") from error


def check(loop: Loop, expected: list[Any], pause: Callable[[int], None]) -> None:
    found = run(loop, "remora", pause)
    for n, (a, b) in enumerate(zip(expected, found, strict=False)):
        assert repr(b) == repr(a), f"loop {loop.seed}: what it saw as number {n}\n{loop.source}"
    assert len(found) == len(expected), f"loop {loop.seed}\n{loop.source}"
