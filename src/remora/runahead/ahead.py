"""What an executor runs before it is told to, and what becomes of it. Events in, decisions out.

Messages are predicted one after another (predictor.py). Those that ran without having been said are unconfirmed, in
their order; a message that agrees confirms the first of them, one that does not undoes them all.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from remora.runahead.depth import Depth
from remora.runahead.predictor import Agreement, Predictor, Walk
from remora.wire.messages import ToExecutor

MAX_USUAL = 4096  # kinds of programs whose answers are remembered

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ran(Generic[T]):
    """A message that ran ahead. undo: whatever its executor needs to confirm or undo it. ends: a question."""

    message: ToExecutor
    ends: bool
    undo: T


class Asked(NamedTuple):
    """A question: which kind of program it ends, and whether that had not been said then."""

    kind: int
    ahead: bool


class RunningAhead(Generic[T]):
    """The decisions for one session. Its executor asks for what comes (`coming`), says what it ran (`ran`) and what
    came out (`answered`), and tells every message of the client (`said`, `confirmed`)."""

    def __init__(self, depth: int) -> None:
        self.predictor = Predictor()
        self.depth = Depth(depth)
        self.unconfirmed: deque[Ran[T]] = deque()
        self._programs = 0  # of them, those that are whole
        self._walk: Walk | None = None  # behind them; None: nothing is unconfirmed
        self._stopped = False
        self._stalled = False
        self._late = False
        self._usual: dict[int, tuple[int | None, int | None]] = {}  # the last two answers, by kind of program
        self._answers: deque[tuple[int, int]] = deque()  # (kind, answer) of programs that are unconfirmed
        self._asked = 0  # the kind of the last of them
        self._confirmed = 0  # programs since the client said how it fares

    @property
    def epoch(self) -> int:
        return self.predictor.epoch

    def coming(self) -> ToExecutor | None:
        """The next message to run ahead; None: stand still."""
        if self._stopped or self.predictor.walk is None:
            return None
        if self._programs >= self.depth.programs:
            self._stalled = True
            return None
        if self._walk is None:
            self._walk = self.predictor.walk.copy()
        return self._walk.peek()

    def ran(self, undo: T) -> None:
        """The coming message ran."""
        walk = self._walk
        assert walk is not None
        assert walk.kind is not None
        ends = walk.ends
        if ends:
            self._asked = walk.kind.number
        self.unconfirmed.append(Ran(walk.advance(), ends, undo))
        self._programs += ends

    def stop(self) -> None:
        """The coming message cannot run ahead; it is the client's to say."""
        self._stopped = True

    def asked(self) -> Asked:
        """The question that was the last to run, whose answer may come when more has run."""
        ahead = bool(self.unconfirmed)
        return Asked(self._asked if ahead else self.predictor.kind, ahead)

    def answered(self, answer: int, late: bool = False, asked: Asked | None = None) -> None:
        """A question was answered, ahead or not; answer: a hash of the values.

        late: the answer only goes out when it is asked for, so that the client waits for it in any case.
        asked: which one, if more has run since; questions are answered in their order, before they are confirmed.

        Where the same value came each time, another one is a branch of the program: nothing is known beyond it.
        """
        kind, ahead = asked or self.asked()
        last, before = self._usual.get(kind, (None, None))
        if kind and last is not None and last == before != answer:
            self._stopped = True
        if ahead:
            self._answers.append((kind, answer))
        else:
            self._remember(kind, answer)
        self._late = self._late or late

    def said(self, message: ToExecutor) -> tuple[Ran[T] | None, list[Ran[T]]]:
        """The client said a message, no Free. What it confirms, and, last first, what it undoes."""
        if self.predictor.take(message) is Agreement.OTHER:
            return None, self.retreat()
        return self._confirm(), []

    def confirmed(self) -> tuple[ToExecutor, Ran[T] | None]:
        """The client said what was predicted: the message, and what ran ahead for it, if it did.

        Raises LookupError: nothing is predicted.
        """
        if self.predictor.expected is None:
            raise LookupError("nothing is predicted that could be confirmed")
        return self.predictor.go_on(), self._confirm()

    def feedback(self, lead: int) -> None:
        """The client said how many answers it has ahead of need; it confirms programs next."""
        stalled = self._stalled or self._programs >= self.depth.programs
        short = self._programs + 1 >= self.depth.programs
        self.depth.confirmed(self._confirmed, lead, stalled and not self._late, short and not self._late)
        self._stalled = self._late = False
        self._confirmed = 0

    def _confirm(self) -> Ran[T] | None:
        if not self.unconfirmed:
            self._stopped = False  # the client went beyond what made it stop
            self._walk = None
            return None
        ran = self.unconfirmed.popleft()
        if ran.ends:
            self._programs -= 1
            self._confirmed += 1
            self._remember(*self._answers.popleft())
        if not self.unconfirmed:
            self._walk = None
        return ran

    def _remember(self, kind: int, answer: int) -> None:
        if len(self._usual) >= MAX_USUAL and kind not in self._usual:
            self._usual.clear()
        self._usual[kind] = answer, self._usual.get(kind, (None, None))[0]

    def retreat(self) -> list[Ran[T]]:
        """Nothing that is unconfirmed shall have run; what is to be undone, last first."""
        undone = list(reversed(self.unconfirmed))
        self.unconfirmed.clear()
        self._answers.clear()
        self._programs = self._confirmed = 0
        self._walk, self._stopped, self._stalled = None, False, False
        if undone:
            self.depth.broken()
        return undone
