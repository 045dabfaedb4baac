"""A message to an executor apart from where in the stream it stands: what repeats when a program repeats.

Segment numbers and tickets count on from message to message; the form holds the differences. What else may change,
numbers in holes and uploaded bytes, is kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remora.wire.codec import encode
from remora.wire.messages import Barrier, DeviceQuery, Fetch, MemoryQuery, Put, Run, ToExecutor

Number = Any  # int, float or bytes
Numbers = tuple[Number, ...]
_PAUSES = (Barrier, DeviceQuery, MemoryQuery)
_MAX_INT = 1 << 62


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a stream: the segment and the ticket that came last."""

    segment: int = 0
    ticket: int = 0


@dataclass(frozen=True, slots=True)
class Form:
    """shape: equal for two messages that differ in their place and in their numbers only. numbers: of the holes, or
    the bytes of an upload. ends: a question, so the program ends here. foreseen: such messages are predicted.
    pauses: whoever asks it looks at the executor, not at values, and what he does next is anybody's guess."""

    shape: tuple[Any, ...]
    numbers: Numbers
    ends: bool
    foreseen: bool = True
    pauses: bool = False

    @property
    def nbytes(self) -> int:
        """Roughly, of what is remembered of it."""
        parts = [part for part in (*self.shape, *self.numbers) if isinstance(part, (tuple, bytes))]
        return (
            64
            + 8 * len(self.numbers)
            + sum(len(part) if isinstance(part, bytes) else 8 * len(part) for part in parts)
        )


def form_of(message: ToExecutor, at: Place) -> tuple[Form, Place]:
    """The form of a message behind `at`, and the place behind it.

    Of a Run's frees nothing is in the form: they come when they come.
    """
    if type(message) is Run and not len(message.holes or ()) % 2 and not len(message.slots or ()) % 5:
        segment, ticket = message.segment, message.ticket
        holes = message.holes or ()
        shape: tuple[Any, ...] = (
            Run,
            segment - at.segment,
            message.site,
            _turned(message.slots, segment),
            holes[::2],
            message.keep,
            message.wants,
            ticket - at.ticket if ticket is not None else None,
        )
        asks = message.wants is not None
        return Form(shape, holes[1::2], asks), Place(segment, ticket if ticket is not None else at.ticket)
    if type(message) is Put:
        shape = (Put, message.segment - at.segment, message.dtype, message.shape)
        return Form(shape, (bytes(message.data),), False), Place(message.segment, at.ticket)
    if type(message) is Fetch and not message.describe:
        names = message.names
        back = tuple(at.segment - n if i % 3 == 0 else n for i, n in enumerate(names))
        shape = (Fetch, message.ticket - at.ticket, back)
        return Form(shape, (), True), Place(at.segment, message.ticket)
    segment = getattr(message, "segment", at.segment)
    ticket = getattr(message, "ticket", None) or at.ticket
    shape = (type(message), segment - at.segment, ticket - at.ticket)
    pauses = isinstance(message, _PAUSES)
    ends = pauses or type(message) is Fetch or (type(message) is Run and message.wants is not None)
    return Form(shape, (), ends, False, pauses), Place(segment, ticket)


def message_of(form: Form, numbers: Numbers, at: Place) -> tuple[ToExecutor, Place]:
    """Inverse of `form_of` for what is foreseen, with other numbers."""
    kind, *rest = form.shape
    if kind is Run:
        ahead, site, slots, holes, keep, wants, tickets = rest
        segment = at.segment + ahead
        ticket = None if tickets is None else at.ticket + tickets
        flat = tuple(n for pair in zip(holes, numbers, strict=True) for n in pair) or None
        place = Place(segment, at.ticket if ticket is None else ticket)
        return Run(segment, site, _turned(slots, segment), flat, keep, None, wants, ticket), place
    if kind is Put:
        ahead, dtype, shape = rest
        (data,) = numbers
        return Put(at.segment + ahead, dtype, shape, data), Place(at.segment + ahead, at.ticket)
    tickets, back = rest
    names = tuple(at.segment - n if i % 3 == 0 else n for i, n in enumerate(back))
    ticket = at.ticket + tickets
    return Fetch(ticket, names), Place(at.segment, ticket)


def are_one(said: ToExecutor, expected: ToExecutor) -> bool:
    """Whether two messages are equal, to the bit."""
    if type(said) is Run and said.holes is not None:
        return encode(said) == encode(expected)
    return said == expected


def step_between(first: Numbers, second: Numbers) -> Numbers | None:
    """What the second has more than the first, 0 where they are the same to the bit; None: there is no such step."""
    steps: list[Number] = []
    for a, b in zip(first, second, strict=True):
        if encode(a) == encode(b):
            steps.append(0)
            continue
        if isinstance(a, bytes) or isinstance(b, bytes):
            return None
        step = b - a
        if not step or step != step:
            return None
        steps.append(step)
    return tuple(steps)


def stepped(numbers: Numbers, steps: Numbers | None) -> Numbers | None:
    """What comes after numbers by a step each; None: that is not to be told."""
    if steps is None:
        return None
    after = tuple([n + by if by else n for n, by in zip(numbers, steps, strict=True)])
    if any(isinstance(n, int) and not -_MAX_INT < n < _MAX_INT for n in after):
        return None
    return after


def same_numbers(first: Numbers, second: Numbers) -> bool:
    """To the bit, which `==` is not: 0.0 equals -0.0, and whether a NaN equals itself depends on the process."""
    return encode(first) == encode(second)


def _turned(slots: tuple[int, ...] | None, segment: int) -> tuple[int, ...] | None:
    """Absolute names as distances, and back: they move along with the segments."""
    if slots is None or 0 not in slots[1::5]:
        return slots
    turned = list(slots)
    for at in range(0, len(turned), 5):
        if not turned[at + 1]:
            turned[at + 2] = segment - turned[at + 2]
    return tuple(turned)
