"""A message to an executor apart from where in the stream it stands: what repeats when a program repeats.

Segment numbers and tickets count on from message to message; the form holds the differences. Numbers in holes are
kept apart, since they may change by a fixed step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remora.wire.codec import encode
from remora.wire.messages import Fetch, Put, Run, ToExecutor

Numbers = tuple[int | float, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a stream: the segment and the ticket that came last."""

    segment: int = 0
    ticket: int = 0


@dataclass(frozen=True, slots=True)
class Form:
    """shape: equal for two messages that differ in their place and in their holes' numbers only.
    numbers: of the holes. ends: a question, so the program ends here."""

    shape: tuple[Any, ...]
    numbers: Numbers
    ends: bool


def form_of(message: ToExecutor, at: Place) -> tuple[Form, Place] | None:
    """The form of a message behind `at`, and the place behind it; None for one that is never predicted.

    Of a Run's frees nothing is in the form: they come when they come.
    """
    if type(message) is Run:
        segment, ticket = message.segment, message.ticket
        holes = message.holes or ()
        shape: tuple[Any, ...] = (
            Run,
            segment - at.segment,
            message.site,
            message.slots,
            holes[::2],
            message.keep,
            message.wants,
            ticket - at.ticket if ticket is not None else None,
        )
        asks = message.wants is not None
        return Form(shape, holes[1::2], asks), Place(segment, ticket if ticket is not None else at.ticket)
    if type(message) is Put:
        shape = (Put, message.segment - at.segment, message.dtype, message.shape, message.data)
        return Form(shape, (), False), Place(message.segment, at.ticket)
    if type(message) is Fetch and not message.describe:
        names = message.names
        back = tuple(at.segment - n if i % 3 == 0 else n for i, n in enumerate(names))
        shape = (Fetch, message.ticket - at.ticket, back)
        return Form(shape, (), True), Place(at.segment, message.ticket)
    return None


def message_of(form: Form, numbers: Numbers, at: Place) -> tuple[ToExecutor, Place]:
    """Inverse of `form_of`, with other numbers in the holes."""
    kind, *rest = form.shape
    if kind is Run:
        ahead, site, slots, holes, keep, wants, tickets = rest
        segment = at.segment + ahead
        ticket = None if tickets is None else at.ticket + tickets
        flat = tuple(n for pair in zip(holes, numbers, strict=True) for n in pair) or None
        place = Place(segment, at.ticket if ticket is None else ticket)
        return Run(segment, site, slots, flat, keep, None, wants, ticket), place
    if kind is Put:
        ahead, dtype, shape, data = rest
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


def continued(first: Numbers, second: Numbers) -> Numbers:
    """What follows two lists of numbers by a fixed step each."""
    if same_numbers(first, second):
        return second
    pairs = zip(first, second, strict=True)
    return tuple([b if encode(a) == encode(b) else b + (b - a) for a, b in pairs])


def same_numbers(first: Numbers, second: Numbers) -> bool:
    """To the bit, which `==` is not: 0.0 equals -0.0, and whether a NaN equals itself depends on the process."""
    return encode(first) == encode(second)
