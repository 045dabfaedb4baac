"""What an executor runs before it is told to, and what becomes of it. Events in, decisions out.

Messages are predicted one after another (predictor.py). Those that ran without having been said are unconfirmed, in
their order; a message that agrees confirms the first of them, one that does not undoes them all.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from remora.runahead.depth import Depth
from remora.runahead.predictor import MAX_PERIOD, Agreement, Cursor, Predictor
from remora.wire.messages import ToExecutor

MEMORY = 4 * MAX_PERIOD  # answers that are remembered

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ran(Generic[T]):
    """A message that ran ahead. undo: whatever its executor needs to confirm or undo it. ends: a question."""

    message: ToExecutor
    ends: bool
    undo: T


class RunningAhead(Generic[T]):
    """The decisions for one session. Its executor asks for what comes (`coming`), says what it ran (`ran`) and what
    came out (`answered`), and tells every message of the client (`said`, `confirmed`)."""

    def __init__(self, depth: int) -> None:
        self.predictor = Predictor()
        self.depth = Depth(depth)
        self.unconfirmed: deque[Ran[T]] = deque()
        self._programs = 0  # of them, those that are whole
        self._cursor: Cursor | None = None  # behind them; None: nothing is unconfirmed
        self._stopped = False
        self._stalled = False
        self._late = False
        self._answers: deque[int] = deque()  # one for each program, the unconfirmed ones last

    @property
    def epoch(self) -> int:
        return self.predictor.epoch

    def coming(self) -> ToExecutor | None:
        """The next message to run ahead; None: stand still."""
        if self._stopped or self.predictor.cursor is None:
            return None
        if self._programs >= self.depth.programs:
            self._stalled = True
            return None
        if self._cursor is None:
            self._cursor = self.predictor.cursor.copy()
        return self._cursor.peek()

    def ran(self, undo: T) -> None:
        """The coming message ran."""
        assert self._cursor is not None
        ends = self._cursor.ends
        self.unconfirmed.append(Ran(self._cursor.advance(), ends, undo))
        self._programs += ends

    def stop(self) -> None:
        """The coming message cannot run ahead; it is the client's to say."""
        self._stopped = True

    def answered(self, answer: int, late: bool = False) -> None:
        """A question was answered, ahead or not; answer: a hash of the values.

        late: the answer only goes out when it is asked for, so that the client waits for it in any case.

        Where the same value came each time, another one is a branch of the program: nothing is known beyond it.
        """
        period = self._period()
        answers = self._answers
        if period and len(answers) >= 2 * period:
            last, before = answers[-period], answers[-2 * period]
            if last == before != answer:
                self._stopped = True
        answers.append(answer)
        while len(answers) > MEMORY + self._programs:
            answers.popleft()
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
        """The client said how many answers it has ahead of need."""
        self.depth.confirmed(lead, self._stalled and not self._late)
        self._stalled = self._late = False

    def _confirm(self) -> Ran[T] | None:
        if not self.unconfirmed:
            self._stopped = False  # the client went beyond what made it stop
            self._cursor = None
            return None
        ran = self.unconfirmed.popleft()
        self._programs -= ran.ends
        if not self.unconfirmed:
            self._cursor = None
        return ran

    def retreat(self) -> list[Ran[T]]:
        """Nothing that is unconfirmed shall have run; what is to be undone, last first."""
        undone = list(reversed(self.unconfirmed))
        for _ in range(self._programs):
            self._answers.pop()
        self.unconfirmed.clear()
        self._programs = 0
        self._cursor, self._stopped, self._stalled = None, False, False
        return undone

    def _period(self) -> int:
        """Programs in a period; 0: none is predicted."""
        return self.predictor.cursor.questions if self.predictor.cursor is not None else 0
