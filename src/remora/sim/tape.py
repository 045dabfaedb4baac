"""What both ends of a lane predict, told once for all sessions that say the same messages.

A prediction is a function of the messages alone (runahead/predictor.py). Messages are numbers here, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from remora.runahead.predictor import Agreement, Cursor, Predictor
from remora.wire.limits import MAX_DEPTH
from remora.wire.messages import ToExecutor

_BEYOND = MAX_DEPTH + 1  # programs of a broken prediction that are worth knowing


@dataclass
class Tape:
    """Of the messages in their order (those that are never predicted, Frees, left out).

    agreements: of each message. epochs: behind each; before the first it is 0. questions: of the period that is
    predicted, before each message and behind the last; 0: nothing is predicted. breaks: the next message that breaks
    the prediction which holds there, or one behind the last. beyond: what the
    prediction that a message breaks goes on with, as numbers, from that message on.
    """

    agreements: list[Agreement] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    beyond: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def expected(self, at: int, ahead: int) -> int | None:
        """The message that is predicted `ahead` messages behind message `at`; None: nobody looks so far."""
        broken = self.breaks[at]
        if at + ahead < broken:
            return at + ahead
        more = self.beyond.get(broken, ())
        past = at + ahead - broken
        return more[past] if past < len(more) else None


def record(messages: Sequence[ToExecutor], like: Callable[[ToExecutor, bool], int]) -> Tape:
    """Runs the predictor over a lane's messages.

    like: gives a number for a message that was predicted and never said, which is a question or not.
    """
    tape, predictor = Tape(), Predictor()
    broken: list[int] = []
    for number, message in enumerate(messages):
        live = predictor.expected is not None
        tape.questions.append(predictor.cursor.questions if live and predictor.cursor is not None else 0)
        before = predictor.cursor.copy() if predictor.cursor is not None else None
        agreement = predictor.take(message)
        tape.agreements.append(agreement)
        tape.epochs.append(predictor.epoch)
        if live and agreement is Agreement.OTHER and before is not None:
            broken.append(number)
            tape.beyond[number] = _walk(before, like)
    tape.questions.append(predictor.cursor.questions if predictor.cursor is not None else 0)
    if predictor.cursor is not None:
        broken.append(len(messages))
        tape.beyond[len(messages)] = _walk(predictor.cursor.copy(), like)
    following = iter(broken)
    next_break = next(following, len(messages))
    for number in range(len(messages) + 1):
        while next_break < number:
            next_break = next(following, len(messages))
        tape.breaks.append(next_break)
    return tape


def _walk(cursor: Cursor, like: Callable[[ToExecutor, bool], int]) -> tuple[int, ...]:
    found: list[int] = []
    programs = 0
    while programs < _BEYOND:
        ends = cursor.ends
        found.append(like(cursor.advance(), ends))
        programs += ends
    return tuple(found)


class TapeCursor:
    """Stands for runahead's Cursor at a place of a tape."""

    __slots__ = ("_ahead", "_at", "_ends", "_tape", "questions")

    def __init__(self, tape: Tape, at: int, ends: Sequence[bool]) -> None:
        self._tape, self._at, self._ends, self._ahead = tape, at, ends, 0
        self.questions = tape.questions[at]

    def copy(self) -> TapeCursor:
        other = TapeCursor(self._tape, self._at, self._ends)
        other._ahead = self._ahead
        return other

    def peek(self) -> int | None:
        return self._tape.expected(self._at, self._ahead)

    @property
    def ends(self) -> bool:
        number = self.peek()
        return number is not None and self._ends[number]

    def advance(self) -> int:
        number = self.peek()
        assert number is not None
        self._ahead += 1
        return number


class TapePredictor:
    """Stands for runahead's Predictor, for one session.

    ends: of all messages, those that were only predicted too, whether they are questions.
    """

    __slots__ = ("_ends", "_tape", "at")

    def __init__(self, tape: Tape, ends: Sequence[bool]) -> None:
        self._tape, self._ends, self.at = tape, ends, 0

    @property
    def epoch(self) -> int:
        return self._tape.epochs[self.at - 1] if self.at else 0

    @property
    def cursor(self) -> TapeCursor | None:
        return TapeCursor(self._tape, self.at, self._ends) if self._tape.questions[self.at] else None

    @property
    def expected(self) -> int | None:
        return self._tape.expected(self.at, 0) if self._tape.questions[self.at] else None

    def take(self, message: int) -> Agreement:
        assert message == self.at
        self.at += 1
        return self._tape.agreements[message]

    def go_on(self) -> int:
        self.at += 1
        return self.at - 1
