"""Both ends of run-ahead over a link with random delays: what the client gets and what the executor did are always
what they would be without it."""

from __future__ import annotations

import random
from collections import deque
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from remora.runahead.ahead import RunningAhead
from remora.runahead.form import Place, form_of, message_of
from remora.session.ahead import Ahead
from remora.wire.messages import (
    Barrier,
    Confirm,
    Early,
    Fetch,
    Free,
    Payload,
    Put,
    Run,
    RunAhead,
    Undone,
    Values,
)


def payload(state: tuple, question) -> Payload:
    """What a question finds: a function of all that ran before, which changes now and then."""
    return Payload("int64", (1,), (1,), bytes([len(state) // 11 % 2, hash(question) % 3]), 2)


def effect(message):
    """What a message does to the executor's state."""
    if isinstance(message, Run):
        return (message.segment, message.site, message.slots, message.holes, message.keep)
    return message


class Executor:
    """Its state is the list of all that ran, by name those that were freed."""

    def __init__(self) -> None:
        self.state: list = []
        self.freed: list = []
        self.ahead: RunningAhead[int] | None = None
        self.out: deque = deque()

    def take(self, message) -> None:
        if isinstance(message, RunAhead):
            self.ahead = RunningAhead(message.depth)
        elif isinstance(message, Free):
            self.freed += message.names
        elif isinstance(message, Confirm):
            assert self.ahead is not None
            self.ahead.feedback(message.lead)
            for _ in range(message.count):
                self.certain(*self.ahead.confirmed())
        else:
            assert self.ahead is not None
            ran, undone = self.ahead.said(message)
            if undone:
                del self.state[undone[-1].undo :]
                self.out.append(Undone(sum(was.ends for was in undone)))
            self.certain(message, ran)

    def certain(self, message, ran) -> None:
        if ran is None:
            values = self.run(message)
            if values is not None:
                assert self.ahead is not None
                self.ahead.answered(hash(values))
                self.out.append(Values(message.ticket, values))
        if isinstance(message, Run):
            self.freed += message.frees or ()

    def go(self) -> bool:
        """Runs something ahead, if there is something."""
        coming = self.ahead.coming() if self.ahead is not None else None
        if coming is None or self.ahead is None:
            return False
        before = len(self.state)
        values = self.run(coming)
        self.ahead.ran(before)
        if values is not None:
            self.ahead.answered(hash(values))
            self.out.append(Early(self.ahead.epoch, 1, coming.ticket, values))
        return True

    def run(self, message):
        self.state.append(effect(message))
        if isinstance(message, Fetch) or (isinstance(message, Run) and message.ticket is not None):
            return (payload(tuple(self.state), effect(message)),)
        if isinstance(message, Barrier):
            return (payload(tuple(self.state), 0),)
        return None


@st.composite
def programs(draw):
    """A stream of messages in which programs repeat, with a period, and break off now and then."""
    n_sites = draw(st.integers(1, 3))
    kinds = draw(
        st.lists(st.lists(st.integers(0, n_sites - 1), min_size=1, max_size=3), min_size=1, max_size=3)
    )
    steps = draw(st.sampled_from([(0,), (1,), (0, 2)]))
    order = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.lists(st.integers(0, len(kinds) - 1), min_size=1, max_size=3))
        order += kind * draw(st.integers(1, 12))
    odd = draw(st.sets(st.integers(0, max(0, len(order) - 1)), max_size=4))
    choices = [draw(st.sampled_from(["hole", "free", "keep", "put", "barrier", "ticket"])) for _ in odd]
    return kinds, order, dict(zip(sorted(odd), choices, strict=True)), steps


def messages(kinds, order, odd, steps):
    """The messages of each program, the last of which is its question."""
    segment = ticket = count = 0
    for at, kind in enumerate(order):
        said = []
        what = odd.get(at)
        if what == "put":
            segment += 1
            said.append(Put(segment, "float32", (1,), bytes([at % 256, 0, 0, 0])))
        if what == "free":
            said.append(Free((1, 2, at)))
        for row, site in enumerate(kinds[kind]):
            segment += 1
            count += steps[at % len(steps)]
            last = row + 1 == len(kinds[kind])
            holes = (0, count + (7 if what == "hole" else 0)) if count else None
            keep = (0, 0) if what == "keep" else None
            frees = (1, 0, at) if at % 5 == 4 else None
            inline = last and kind != 1
            ticket += inline
            said.append(
                Run(
                    segment,
                    site,
                    None,
                    holes,
                    keep,
                    frees,
                    (0, 0) if inline else None,
                    ticket if inline else None,
                )
            )
        if what == "barrier":
            ticket += 1
            said.append(Barrier(ticket))
        elif kind == 1 or what == "ticket":
            ticket += 1 + (what == "ticket")
            said.append(Fetch(ticket, (segment - 1, 0, 0)))
        yield said


@settings(max_examples=300, deadline=None)
@given(programs(), st.integers(0, 1 << 32))
def test_the_client_gets_and_the_executor_does_what_was_said(drawn, seed):
    rng = random.Random(seed)
    link = SimpleNamespace(early={}, on_early=None, on_undone=None)
    client, executor, plain = Ahead(link), Executor(), Executor()
    outbox = [client.start()]
    up: deque = deque()
    truth, freed = [], []
    early = 0
    for said in messages(*drawn):
        for message in said:
            client.say(message, outbox)
            values = None
            if isinstance(message, Free):
                freed += message.names
                continue
            values = plain.run(message)
            if isinstance(message, Run):
                freed += message.frees or ()
            truth.append(effect(message))
            if values is None:
                continue
            client.write(outbox)
            up += outbox
            outbox.clear()
            answers: dict = {}
            for _ in range(10_000):
                if message.ticket in link.early:
                    assert link.early.pop(message.ticket).values == values
                    early += 1
                    break
                if message.ticket in answers:
                    assert answers[message.ticket].values == values
                    break
                choice = rng.choice(("deliver", "look", "go", "reply"))
                if choice == "deliver" and up:
                    executor.take(up.popleft())
                elif choice == "look" and executor.ahead is not None:
                    executor.ahead.coming()  # and something else came first
                elif choice == "go":
                    executor.go()
                elif executor.out:
                    reply = executor.out.popleft()
                    if isinstance(reply, Early):
                        if link.on_early(reply):
                            link.early[reply.ticket] = Values(reply.ticket, reply.values)
                    elif isinstance(reply, Undone):
                        link.on_undone(reply)
                    else:
                        answers[reply.ticket] = reply
            else:
                raise AssertionError(f"no answer to {message}")
    client.write(outbox)
    up += outbox
    while up:
        executor.take(up.popleft())
    ran_ahead = len(executor.ahead.unconfirmed) if executor.ahead is not None else 0
    assert executor.state[: len(executor.state) - ran_ahead] == truth
    assert executor.freed == freed


@given(
    st.integers(0, 100),
    st.integers(0, 100),
    st.lists(st.one_of(st.integers(-5, 5), st.floats(allow_nan=False)), max_size=3).map(tuple),
    st.one_of(st.none(), st.integers(1, 9)),
)
def test_a_form_gives_its_message_back(segment, ticket, numbers, asks):
    at = Place(segment, ticket)
    holes = tuple(n for pair in enumerate(numbers) for n in pair) or None
    for message in (
        Run(
            segment + 3,
            2,
            (0, 1, 1, 0, 0),
            holes,
            (1, 0),
            None,
            (0, 0) if asks else None,
            asks and ticket + asks,
        ),
        Put(segment + 1, "uint8", (1,), b"x"),
        Fetch(ticket + 1, (segment, 2, 0, segment - 4, 1, 0)),
    ):
        form, place = form_of(message, at)
        again, place_again = message_of(form, form.numbers, at)
        assert again == message
        assert place_again == place
