"""What both ends of a lane predict, told once for all sessions that say the same messages.

A prediction is a function of the messages alone (runahead/predictor.py). Messages are numbers here, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from remora.runahead.predictor import Agreement, Predictor, Walk
from remora.wire.limits import MAX_DEPTH
from remora.wire.messages import ToExecutor

_BEYOND = MAX_DEPTH + 1  # programs of a broken prediction that are worth knowing


@dataclass(frozen=True, slots=True)
class Numbered:
    """Stands for runahead's Kind."""

    number: int


@dataclass
class Tape:
    """Of the messages in their order (those that are never predicted, Frees, left out).

    agreements, epochs, said: of each message, the agreement, and behind it the epoch and the kind of the program that
    was said last. predicted: before each message and behind the last, whether one is. kinds: by message, also those
    that were predicted and never said, the kind of the program that it is predicted in. ends: before each message, the
    next one that a prediction which holds there does not say, or one behind the last. beyond: what the prediction that
    a message breaks goes on with, as numbers, from that message on.
    """

    agreements: list[Agreement] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    predicted: list[bool] = field(default_factory=list)
    kinds: dict[int, Numbered] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    beyond: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def expected(self, at: int, ahead: int) -> int | None:
        """The message that is predicted `ahead` messages behind message `at`; None: nobody looks so far."""
        end = self.ends[at]
        if at + ahead < end:
            return at + ahead
        more = self.beyond.get(end, ())
        past = at + ahead - end
        return more[past] if past < len(more) else None


def record(messages: Sequence[ToExecutor], like: Callable[[ToExecutor, bool], int]) -> Tape:
    """Runs the predictor over a lane's messages.

    like: gives a number for a message that was predicted and never said, which is a question or not.
    """
    tape, predictor = Tape(), Predictor()
    ends: list[int] = []
    for number, message in enumerate(messages):
        before = predictor.walk.copy() if predictor.walk is not None else None
        tape.predicted.append(before is not None)
        if before is not None and before.kind is not None:
            tape.kinds[number] = Numbered(before.kind.number)
        agreement = predictor.take(message)
        tape.agreements.append(agreement)
        tape.epochs.append(predictor.epoch)
        tape.said.append(predictor.kind)
        if before is None:
            continue
        if agreement is Agreement.OTHER:
            ends.append(number)
            tape.beyond[number] = _walk(before, like, tape.kinds)
        elif predictor.walk is None:  # nothing is known of what comes after it
            ends.append(number + 1)
    tape.predicted.append(predictor.walk is not None)
    if predictor.walk is not None:
        ends.append(len(messages))
        tape.beyond[len(messages)] = _walk(predictor.walk.copy(), like, tape.kinds)
    following = iter(ends)
    end = next(following, len(messages))
    for number in range(len(messages) + 1):
        while end < number or (end == number and tape.predicted[number] and number not in tape.beyond):
            end = next(following, len(messages))
        tape.ends.append(end)
    return tape


def _walk(walk: Walk, like: Callable[[ToExecutor, bool], int], kinds: dict[int, Numbered]) -> tuple[int, ...]:
    found: list[int] = []
    programs = 0
    while programs < _BEYOND and walk.kind is not None:
        ends, kind = walk.ends, walk.kind.number
        found.append(like(walk.advance(), ends))
        kinds[found[-1]] = Numbered(kind)
        programs += ends
    return tuple(found)


class TapeWalk:
    """Stands for runahead's Walk at a place of a tape."""

    __slots__ = ("_ahead", "_at", "_ends", "_tape")

    def __init__(self, tape: Tape, at: int, ends: Sequence[bool]) -> None:
        self._tape, self._at, self._ends, self._ahead = tape, at, ends, 0

    def copy(self) -> TapeWalk:
        other = TapeWalk(self._tape, self._at, self._ends)
        other._ahead = self._ahead
        return other

    def peek(self) -> int | None:
        return self._tape.expected(self._at, self._ahead)

    @property
    def kind(self) -> Numbered | None:
        number = self.peek()
        return None if number is None else self._tape.kinds[number]

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
    def kind(self) -> int:
        return self._tape.said[self.at - 1] if self.at else 0

    @property
    def walk(self) -> TapeWalk | None:
        return TapeWalk(self._tape, self.at, self._ends) if self._tape.predicted[self.at] else None

    @property
    def expected(self) -> int | None:
        return self._tape.expected(self.at, 0) if self._tape.predicted[self.at] else None

    def take(self, message: int) -> Agreement:
        assert message == self.at
        self.at += 1
        return self._tape.agreements[message]

    def go_on(self) -> int:
        self.at += 1
        return self.at - 1
