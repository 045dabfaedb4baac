"""The depth on a link that is played through: with it the client hardly waits, and little more than needed is under
way."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from remora.runahead.depth import Depth

PROGRAMS = 800
LEARNING = 200


class Played:
    """A client that takes `client_ms` to say a program, an executor that runs one in `run_ms`; both vary."""

    def __init__(self, rtt_ms: float, client_ms: float, run_ms: float, varies: float, seed: int = 0) -> None:
        self.one_way_ms, self.client_ms, self.run_ms, self.varies = rtt_ms / 2, client_ms, run_ms, varies
        self.rng = random.Random(seed)
        self.depth = Depth(64)
        self.depths: list[int] = []
        self.taken_ms: list[float] = []
        self.events: list[tuple[float, int, str, int]] = []
        self.count = itertools.count()
        self.ran = self.confirmed = self.had = 0
        self.busy = self.stalled = self.waits = False

    def play(self) -> None:
        self.after(0.0, "said", 0)
        self.run(0.0)
        while len(self.taken_ms) < PROGRAMS:
            now_ms, _, what, lead = heapq.heappop(self.events)
            getattr(self, what)(now_ms, lead)

    def after(self, at_ms: float, what: str, lead: int) -> None:
        heapq.heappush(self.events, (at_ms, next(self.count), what, lead))

    def about(self, ms: float) -> float:
        return ms * (1 + self.varies * self.rng.expovariate(1.0))

    def run(self, now_ms: float) -> None:
        if self.ran - self.confirmed >= self.depth.programs:
            self.stalled = True
        elif not self.busy:
            self.busy = True
            self.after(now_ms + self.about(self.run_ms), "did", 0)

    def did(self, now_ms: float, _: int) -> None:
        self.busy = False
        self.ran += 1
        self.after(now_ms + self.one_way_ms, "answer", 0)
        self.run(now_ms)

    def answer(self, now_ms: float, _: int) -> None:
        self.had += 1
        if self.waits:
            self.take(now_ms)

    def said(self, now_ms: float, _: int) -> None:
        self.after(now_ms + self.one_way_ms, "confirm", self.had - len(self.taken_ms))
        self.take(now_ms)

    def take(self, now_ms: float) -> None:
        self.waits = self.had <= len(self.taken_ms)
        if not self.waits:
            self.taken_ms.append(now_ms)
            self.after(now_ms + self.about(self.client_ms), "said", 0)

    def confirm(self, now_ms: float, lead: int) -> None:
        stalled = self.stalled or self.ran - self.confirmed >= self.depth.programs
        short = self.ran - self.confirmed + 1 >= self.depth.programs
        self.stalled = False
        self.confirmed += 1
        self.depth.confirmed(1, lead, stalled, short)
        self.depths.append(self.depth.programs)
        self.run(now_ms)


@pytest.mark.parametrize("varies", [0.0, 0.3, 2.0])
@pytest.mark.parametrize(
    ("rtt_ms", "client_ms", "run_ms"),
    [(50, 4, 3), (50, 4, 4), (50, 3, 4), (50, 1, 0.4), (10, 4, 3), (200, 4, 4), (50, 5, 40), (0, 4, 3)],
)
def test_the_client_hardly_waits(rtt_ms, client_ms, run_ms, varies):
    played = Played(rtt_ms, client_ms, run_ms, varies)
    played.play()
    steady_ms = (played.taken_ms[-1] - played.taken_ms[LEARNING]) / (PROGRAMS - 1 - LEARNING)
    slower_ms = max(client_ms, run_ms) * (1 + varies)
    if rtt_ms:
        assert steady_ms <= slower_ms * 1.12
    needed = rtt_ms / slower_ms + 2
    assert max(played.depths[LEARNING:]) <= min(64, max(4, 2.5 * needed))
