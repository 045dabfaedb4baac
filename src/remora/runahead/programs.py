"""The programs that a session has run, and what came after each: what a prediction is made from.

A program is the messages up to a question, its kind what is left of them without place and numbers. The kind that is
expected is the one that came behind the same past before, the longest past that is known, if it came often enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from remora.runahead.form import Form, Numbers, same_numbers, step_between, stepped

PASTS = (4, 2, 1)  # programs that are looked back at
MAX_PROGRAM_NBYTES = 1 << 20  # of what is remembered; roughly
MAX_NBYTES = 32 << 20  # of all of them; then all is forgotten
MAX_KINDS = 2048
MAX_HITS = 64
UNKNOWN = 0  # the number of what is no program to be remembered, nor followed by any
TRUSTED = 4  # steps in a row that were as expected: then one that was not was a jump
MAX_TRUST = 8

Past = tuple[int, ...]


@dataclass(slots=True)
class Kind:
    """last: the numbers that it had last, each message's. steps: by which they are expected to go on, if at all.
    trust: how often they have."""

    number: int
    forms: tuple[Form, ...]
    last: list[Numbers]
    steps: list[Numbers | None]
    trust: int = 0

    @property
    def foreseen(self) -> bool:
        """Whether what it says next can be told."""
        return self.trust > 0 and all(form.foreseen for form in self.forms)

    def came(self, numbers: Sequence[Numbers]) -> None:
        """It was said once more, with these numbers."""
        expected = [stepped(last, by) for last, by in zip(self.last, self.steps, strict=True)]
        if all(e is not None and same_numbers(e, n) for e, n in zip(expected, numbers, strict=True)):
            self.trust = min(self.trust + 1, MAX_TRUST)
        elif self.trust >= TRUSTED:
            self.trust = 1
        else:
            self.trust = 0
            self.steps = [step_between(a, b) for a, b in zip(self.last, numbers, strict=True)]
        self.last = list(numbers)


@dataclass(slots=True)
class Next:
    """What came after a past, and how often, more or less, without another in between."""

    kind: int
    hits: int = 1

    def came(self, kind: int) -> None:
        if kind == self.kind:
            self.hits = min(self.hits + 1, MAX_HITS)
        elif self.hits > 1:
            self.hits //= 2
        else:
            self.kind = kind


class Programs:
    """What is remembered. It changes only while nothing is predicted, so that a walk through coming programs meets at
    each what it would meet if it had been said."""

    def __init__(self) -> None:
        self.kinds: dict[int, Kind] = {}
        self.past: deque[int] = deque(maxlen=max(PASTS))  # kinds, the last one last
        self._count = 0
        self._numbers: dict[tuple[object, ...], int] = {}
        self._next: dict[Past, Next] = {}
        self._around: dict[int, Next] = {}  # by the kind before one that was new
        self._nbytes = 0

    def learn(self, forms: Sequence[Form]) -> int:
        """A program was said; its number, or UNKNOWN."""
        nbytes = sum(form.nbytes for form in forms)
        if forms[-1].pauses or nbytes > MAX_PROGRAM_NBYTES:
            self.follow(UNKNOWN)
            self.past.clear()
            return UNKNOWN
        shapes = tuple([form.shape for form in forms])
        number = self._numbers.get(shapes)
        if number is None:
            return self._meet(shapes, forms, nbytes)
        self.kinds[number].came([form.numbers for form in forms])
        self.follow(number)
        return number

    def _meet(self, shapes: tuple[object, ...], forms: Sequence[Form], nbytes: int) -> int:
        if self._nbytes + nbytes > MAX_NBYTES or len(self.kinds) >= MAX_KINDS:
            for all_of_them in (self.kinds, self.past, self._numbers, self._next, self._around):
                all_of_them.clear()
            self._nbytes = 0
        self._count += 1
        self._nbytes += nbytes
        self._numbers[shapes] = self._count
        last = [form.numbers for form in forms]
        self.kinds[self._count] = Kind(
            self._count, tuple(forms), last, [(0,) * len(numbers) for numbers in last]
        )
        self.follow(self._count)
        return self._count

    def held(self, numbers_of: Sequence[int], last: Mapping[int, list[Numbers]], cut: bool) -> None:
        """Programs came as predicted. last: the numbers that each kind among them had last. cut: there were more of
        them, before these."""
        for number, numbers in last.items():
            self.kinds[number].last = numbers
        for number in numbers_of:
            kind = self.kinds[number]
            kind.trust = min(kind.trust + 1, MAX_TRUST)
        if cut:
            self.past.clear()
        for number in numbers_of:
            self.follow(number)

    def follow(self, number: int) -> None:
        """A kind came after the past, of which it is a part from now on."""
        past = tuple(self.past)
        if len(past) > 1 and past[-1] != past[-2] and not self._is_settled(past[-1]):
            _count(self._around, past[-2], number)
        for length in PASTS:
            if length <= len(past):
                _count(self._next, past[-length:], number)
        self.past.append(number)

    def after(self, past: Past, evidence: int) -> Kind | None:
        """What is said next after a past; None: that is not known well enough. evidence: how often it has to have come
        so; twice as often where it is no mere repetition."""
        found = self._around_it(past, evidence)
        thens = [self._next[past[-n:]] for n in PASTS if n <= len(past) and past[-n:] in self._next]
        if thens:
            number = thens[0].kind
            enough = evidence if number == past[-1] else 2 * evidence
            if any(then.kind == number and then.hits >= enough for then in thens):
                found = number
        return self.kinds[found] if found and self.kinds[found].foreseen else None

    def _around_it(self, past: Past, evidence: int) -> int:
        """What goes on behind a program that it is not known how to go on from, as if that had not come."""
        then = self._around.get(past[-2]) if len(past) > 1 else None
        if then is None or then.hits < evidence or self._is_settled(past[-1]):
            return 0
        before = self._next.get(past[-1:])
        return then.kind if before is None or before.kind == then.kind else 0

    def _is_settled(self, kind: int) -> bool:
        """Whether it is known what comes after a kind."""
        then = self._next.get((kind,))
        return then is not None and then.hits > 1


def _count(table: dict, key: Past | int, number: int) -> None:  # type: ignore[type-arg]
    then = table.get(key)
    if then is None:
        table[key] = Next(number)
    else:
        then.came(number)
