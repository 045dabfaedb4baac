"""A recorded program as it would run on a pool: what the client does, and what each executor is told, in order.

Made once (sim/placing.py) and shared by all sessions that run it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from remora.plan.duration import Duration
from remora.sim.tape import Tape, TapePredictor

FREE = -1  # the number of a message that is never predicted: names that ended


class Work(NamedTuple):
    """The client computes."""

    seconds: float


class Say(NamedTuple):
    """A message for an executor. number: of the lane's messages, or FREE."""

    lane: int
    number: int
    nbytes: int


class Commit(NamedTuple):
    """What was said leaves, to all executors. asks: the client is about to wait."""

    asks: bool


class Wait(NamedTuple):
    """The client waits for the answer to a lane's message."""

    lane: int
    number: int


class Upload(NamedTuple):
    """The client waits until bytes are there, and for so many requests."""

    lane: int
    nbytes: int
    requests: int


class Ends(NamedTuple):
    """A program ends: the client has got what it asked for. phase: of most of its rows, '' if it had none.
    waits: that it only waited for all to be done, which is where a stretch of a program may be said to end."""

    phase: str
    waits: bool = False


Act = Work | Say | Commit | Wait | Upload | Ends


class Push(NamedTuple):
    """Values go to another lane's executor. number: by which an Await knows them."""

    number: int
    target: int
    nbytes: int


class Told(NamedTuple):
    """What a message makes its executor do. took: an index of Script.durations, or -1 for no time at all.
    reply_nbytes: of the answer, if it asks; else -1. answer: equal for equal ones. awaits: numbers of pushes."""

    took: int = -1
    reply_nbytes: int = -1
    answer: int = 0
    push: Push | None = None
    awaits: tuple[int, ...] = ()


@dataclass
class Lane:
    """What one executor is told. tape: None if nothing is run ahead. ends: of each message, also of those that are
    only predicted: whether it asks."""

    told: list[Told] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)
    tape: Tape | None = None

    def predictor(self) -> TapePredictor:
        assert self.tape is not None
        return TapePredictor(self.tape, self.ends)


@dataclass
class Script:
    """durations: of everything that executors run, each once, with error bars. held_nbytes: at most, by executor.
    moved: bytes that go from end to end, by what they are, (source, target, residency); CLIENT is an end."""

    acts: list[Act]
    lanes: list[Lane]
    durations: list[Duration]
    policy: str
    held_nbytes: tuple[int, ...] = ()
    moved: dict[tuple[int, int, str], int] = field(default_factory=dict)
    plans: int = 0

    @property
    def programs(self) -> int:
        return sum(isinstance(act, Ends) for act in self.acts)
