"""What a client says next, from what it has said: both ends of a session run this over the same messages.

Where the programs that came last are known to be followed by one (programs.py), the coming messages are known, one
after another, until one differs. The ends agree on every prediction and on the count of broken ones, the epoch, without
a word, since both are functions of the messages alone: what is written here and there, numbers too, is part of the
protocol.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import replace

from remora.runahead.form import Form, Numbers, Place, are_one, form_of, message_of, stepped
from remora.runahead.programs import PASTS, Kind, Programs
from remora.wire.messages import Free, Run, ToExecutor

MAX_PROGRAM = 512  # messages
MAX_EVIDENCE = 32  # that is asked for where predictions keep breaking
WORTH = 4  # programs; a prediction that held for so long was a good one
MAX_HELD = 64  # programs of a prediction that are learned from


class Agreement(enum.Enum):
    """SAME: as predicted. ALIKE: as predicted but for the names that ended. OTHER: not, or nothing was predicted."""

    SAME = enum.auto()
    ALIKE = enum.auto()
    OTHER = enum.auto()


class Walk:
    """A walk through coming messages. Walks do not touch each other, nor what they read."""

    def __init__(self, programs: Programs, at: Place, evidence: int) -> None:
        self._programs, self._past, self._evidence = programs, tuple(programs.past), evidence
        self.numbers: dict[int, list[Numbers]] = {}  # by kind, of programs that were walked through
        self.at = at
        self._start()

    def copy(self) -> Walk:
        other = object.__new__(Walk)
        other._programs, other._past, other._evidence = self._programs, self._past, self._evidence
        other.numbers, other.at = dict(self.numbers), self.at
        other.kind, other.now, other.place = self.kind, self.now, self.place
        other._coming = self._coming
        return other

    def _start(self) -> None:
        """Another program begins."""
        self.place = 0  # of the coming message in it
        self.now: list[Numbers] = []  # its numbers
        self._coming: tuple[ToExecutor, Place] | None = None
        self.kind: Kind | None = self._programs.after(self._past, self._evidence)
        if self.kind is not None:
            last = self.numbers.get(self.kind.number, self.kind.last)
            for numbers, steps in zip(last, self.kind.steps, strict=True):
                after = stepped(numbers, steps)
                if after is None:
                    self.kind = None
                    return
                self.now.append(after)

    @property
    def ends(self) -> bool:
        """Whether the coming message is a question."""
        assert self.kind is not None
        return self.kind.forms[self.place].ends

    def peek(self) -> ToExecutor | None:
        """The coming message; None: nothing is known of what comes."""
        if self._coming is None:
            if self.kind is None:
                return None
            self._coming = message_of(self.kind.forms[self.place], self.now[self.place], self.at)
        return self._coming[0]

    def advance(self) -> ToExecutor:
        """The coming message; the walk goes on behind it."""
        message, kind = self.peek(), self.kind
        assert message is not None
        assert kind is not None
        assert self._coming is not None
        self.at, self._coming = self._coming[1], None
        self.place += 1
        if self.place == len(kind.forms):
            self.numbers[kind.number] = self.now
            self._past = (*self._past, kind.number)[-max(PASTS) :]
            self._start()
        return message

    def begun(self) -> list[Form]:
        """What was said of the open program."""
        if self.kind is None:
            return []
        forms = zip(self.kind.forms[: self.place], self.now, strict=False)
        return [replace(form, numbers=numbers) for form, numbers in forms]


class Predictor:
    """epoch: how many predictions broke. kind: of the program that was said last; 0: it is not remembered."""

    def __init__(self) -> None:
        self.epoch = 0
        self.kind = 0
        self.walk: Walk | None = None  # to what is predicted next; None: nothing is
        self._programs = Programs()
        self._at = Place()
        self._program: list[Form] = []
        self._long = False  # the open program is too long to be remembered
        self._evidence = 1
        self._held = 0  # programs that came as predicted, one after another
        self._came: deque[int] = deque(maxlen=MAX_HELD)  # their kinds

    @property
    def expected(self) -> ToExecutor | None:
        """The message that is said next, if that is known. Its frees are not."""
        return None if self.walk is None else self.walk.peek()

    def take(self, message: ToExecutor) -> Agreement:
        """Something was said. A Free is no part of what is predicted, and not to be given here."""
        assert not isinstance(message, Free)
        expected = self.expected
        if expected is None:
            self._learn(message)
            return Agreement.OTHER
        agreement = _agreement(message, expected)
        if agreement is Agreement.OTHER:
            self._break()
            self._learn(message)
        else:
            self.go_on()
        return agreement

    def go_on(self) -> ToExecutor:
        """The expected message was said."""
        walk = self.walk
        assert walk is not None
        assert walk.kind is not None
        kind, ends = walk.kind.number, walk.ends
        message = walk.advance()
        if ends:
            self.kind = kind
            self._held += 1
            self._came.append(kind)
            if walk.kind is None:
                self._settle(walk)
        return message

    def _break(self) -> None:
        assert self.walk is not None
        self.epoch += 1
        if self._held >= WORTH:
            self._evidence = 1
        else:
            self._evidence = min(2 * self._evidence, MAX_EVIDENCE)
        self._settle(self.walk)

    def _settle(self, walk: Walk) -> None:
        """The prediction has ended; what came as predicted is learned from."""
        self._program = walk.begun()
        self._at, self.walk = walk.at, None
        self._programs.held(self._came, walk.numbers, self._held > len(self._came))
        self._came.clear()
        self._held = 0

    def _learn(self, message: ToExecutor) -> None:
        form, self._at = form_of(message, self._at)
        if len(self._program) >= MAX_PROGRAM:
            self._long = True
        else:
            self._program.append(form)
        if not form.ends:
            return
        if self._long:
            self._programs.past.clear()
            self.kind = 0
        else:
            self.kind = self._programs.learn(self._program)
        self._program, self._long = [], False
        walk = Walk(self._programs, self._at, self._evidence)
        self.walk = walk if walk.kind is not None else None


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
