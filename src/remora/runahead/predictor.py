"""What a client says next, from what it has said: both ends of a session run this over the same messages.

A program is the messages up to a question. Once a number of programs in a row repeat what came a period before them,
the coming messages are known, one after another, until one differs. The ends agree on every prediction and on the
count of broken ones, the epoch, without a word, since both are functions of the messages alone: what is written here,
numbers too, is part of the protocol.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence

from remora.runahead.form import Form, Numbers, Place, are_one, continued, form_of, message_of, same_numbers
from remora.wire.messages import Free, Run, ToExecutor

MAX_PERIOD = 4  # programs
MAX_PROGRAM = 512  # messages
MIN_REPEATS = 2  # times that a period is seen before it is believed
MAX_REPEATS = 32  # of a program that keeps breaking its predictions
LASTING = 8  # periods; a prediction that held for so long was a good one
WORTH = 4  # programs; a loop that was predicted for so long in one go is looked for again


class Agreement(enum.Enum):
    """SAME: as predicted. ALIKE: as predicted but for the names that ended. OTHER: not, or nothing was predicted."""

    SAME = enum.auto()
    ALIKE = enum.auto()
    OTHER = enum.auto()


class Cursor:
    """A walk through coming messages. Walks do not touch each other."""

    def __init__(self, period: Sequence[tuple[Form, Numbers]], at: Place) -> None:
        """period: its messages as said last, each with the numbers that it had a period earlier."""
        self._forms = [form for form, _ in period]
        self._before = [before for _, before in period]
        self._last = [form.numbers for form, _ in period]
        self._next = 0
        self.at = at
        self.turns = 0  # periods walked through
        self.returns = False  # a program that broke it off was followed by its next one before
        self.questions = sum(form.ends for form in self._forms)

    def copy(self) -> Cursor:
        other = Cursor((), self.at)
        other._forms, other._next, other.turns = self._forms, self._next, self.turns
        other.questions, other.returns = self.questions, self.returns
        other._before, other._last = list(self._before), list(self._last)
        return other

    @property
    def ends(self) -> bool:
        """Whether the coming message is a question."""
        return self._forms[self._next].ends

    def peek(self) -> ToExecutor:
        return self._coming()[0]

    def advance(self) -> ToExecutor:
        """The coming message; the walk goes on behind it."""
        message, self.at, numbers = self._coming()
        here = self._next
        self._before[here], self._last[here] = self._last[here], numbers
        self._next = here + 1
        if self._next == len(self._forms):
            self._next = 0
            self.turns += 1
        return message

    def skip_program(self) -> None:
        """Goes to the first message of the program behind the coming message's."""
        while True:
            ends = self.ends
            self._next = (self._next + 1) % len(self._forms)
            if ends:
                return

    def _coming(self) -> tuple[ToExecutor, Place, Numbers]:
        here = self._next
        last = self._last[here]
        numbers = continued(self._before[here], last) if last else last
        message, at = message_of(self._forms[here], numbers, self.at)
        return message, at, numbers


class Predictor:
    """epoch: how many predictions broke."""

    def __init__(self) -> None:
        self.epoch = 0
        self.cursor: Cursor | None = None  # at what is predicted next; None: nothing is
        self._coming: ToExecutor | None = None
        self._at = Place()
        self._program: list[Form] = []
        self._whole = True  # the open program is known from its first message on
        self._programs: deque[tuple[Form, ...]] = deque(maxlen=MAX_PERIOD * MAX_REPEATS)
        self._repeats = MIN_REPEATS
        # Where something else came, the walk may go on with the program behind that:
        self._left: Cursor | None = None
        self._watching = False  # that is so if it is what is said next
        self._returned = False  # that was taken for granted, and nothing has been said since
        self._held = 0  # programs that came as predicted, one after another

    @property
    def expected(self) -> ToExecutor | None:
        """The message that is said next, if that is known. Its frees are not."""
        if self._coming is None and self.cursor is not None:
            self._coming = self.cursor.peek()
        return self._coming

    def take(self, message: ToExecutor) -> Agreement:
        """Something was said. A Free is no part of what is predicted, and not to be given here."""
        assert not isinstance(message, Free)
        expected = self.expected
        if expected is None:
            if not self._comes_back(message):
                self._learn(message)
            return Agreement.OTHER
        agreement = _agreement(message, expected)
        if agreement is Agreement.OTHER:
            self._break(message)
        else:
            self.go_on()
        return agreement

    def go_on(self) -> ToExecutor:
        """The expected message was said."""
        assert self.cursor is not None
        self._coming, self._returned = None, False
        self._held += self.cursor.ends
        return self.cursor.advance()

    def _break(self, message: ToExecutor) -> None:
        assert self.cursor is not None
        self.epoch += 1
        self._at = self.cursor.at
        if self._returned:  # it did not come back this time
            self._left = None
        else:
            lasted = self.cursor.turns >= LASTING
            self._repeats = MIN_REPEATS if lasted else min(2 * self._repeats, MAX_REPEATS)
            self._left = self.cursor if self._held >= WORTH else None
            self.cursor.skip_program()
        self.cursor = self._coming = None
        self._held = 0
        self._watching = self._returned = False
        self._forget()
        self._learn(message)

    def _comes_back(self, message: ToExecutor) -> bool:
        """Whether a message goes on where the last prediction broke off, one program later."""
        left, watching = self._left, self._watching
        self._watching = False
        if left is None or not watching:
            return False
        self._left = None
        left.at = self._at
        if _agreement(message, left.peek()) is Agreement.OTHER:
            return False
        left.advance()
        left.returns = True
        self.cursor = left
        self._forget()
        return True

    def _forget(self) -> None:
        self._programs.clear()
        self._program.clear()
        self._whole = False

    def _learn(self, message: ToExecutor) -> None:
        found = form_of(message, self._at)
        if found is None:
            self._forget()
            return
        form, self._at = found
        if len(self._program) >= MAX_PROGRAM:
            self._forget()
        self._program.append(form)
        if not form.ends:
            return
        if self._whole:
            self._programs.append(tuple(self._program))
            self.cursor = self._settled()
        self._program.clear()
        self._whole = True
        left = self._left
        if self.cursor is not None:
            self._left = None
        elif left is not None and left.returns:
            self._left, self._returned = None, True
            left.at, self.cursor = self._at, left
        else:
            self._watching = left is not None

    def _settled(self) -> Cursor | None:
        """A walk from here on, if enough programs have repeated."""
        programs = self._programs
        for period in range(1, MAX_PERIOD + 1):
            for repeats in (self._repeats, max(3, self._repeats)):
                count = period * repeats
                if count > len(programs):
                    break
                turns = [
                    [form for program in list(programs)[start : start + period] for form in program]
                    for start in range(len(programs) - count, len(programs), period)
                ]
                if _repeat(turns):
                    before, last = turns[-2:]
                    return Cursor([(b, a.numbers) for a, b in zip(before, last, strict=True)], self._at)
        return None


def _repeat(turns: list[list[Form]]) -> bool:
    """Whether each turn says what the ones before it let expect. Two turns cannot show a step."""
    first = turns[0]
    for turn in turns[1:]:
        if len(turn) != len(first):
            return False
        if any(a.shape != b.shape for a, b in zip(first, turn, strict=True)):
            return False
    if len(turns) == 2:
        return all(same_numbers(a.numbers, b.numbers) for a, b in zip(*turns, strict=True))
    for before, last, after in zip(turns, turns[1:], turns[2:], strict=False):
        for a, b, c in zip(before, last, after, strict=True):
            if not same_numbers(continued(a.numbers, b.numbers), c.numbers):
                return False
    return True


def _agreement(message: ToExecutor, expected: ToExecutor) -> Agreement:
    if type(message) is not Run or message.frees is None:
        return Agreement.SAME if are_one(message, expected) else Agreement.OTHER
    rest = Run(
        message.segment,
        message.site,
        message.slots,
        message.holes,
        message.keep,
        None,
        message.wants,
        message.ticket,
    )
    return Agreement.ALIKE if are_one(rest, expected) else Agreement.OTHER
