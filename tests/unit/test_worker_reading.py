"""Answers that the device still computes: what comes next is begun meanwhile, and each goes out in its turn."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_bounds import CPU, worker_session

from late_reading import LateReading
from remora.executor.worker.bounds import Bounds
from remora.executor.worker.failure import DeviceBroken
from remora.executor.worker.reading import Reading
from remora.ir.graph import Template
from remora.ir.node import Hole, Node, Ref, Slot
from remora.wire.messages import Confirm, Define, Early, Fetch, Put, Run, RunAhead, Site, Undone, Values

# x = x + 1; table[x] is asked for
STEP = Template(
    (
        Node("aten.add_.Tensor", (Slot(0), Slot(1))),
        Node("aten.index_select.default", (Slot(2), Hole("int"), Ref(0))),
        Node("aten.mul.Tensor", (Ref(1), Ref(1))),
    )
)


@pytest.fixture
def device():
    """there: whether answers have come."""
    with torch.inference_mode(), worker_session() as session:
        session.bounds = Bounds(CPU)
        session.there = False
        session.device.reading = lambda tensors, bounds: LateReading(tensors, bounds, lambda: session.there)
        for message in (
            RunAhead(64),
            Put(1, "int64", (1,), bytes(8)),
            Put(2, "int64", (1,), (1).to_bytes(8, "little")),
            Put(3, "int64", (16,), b"".join(n.to_bytes(8, "little") for n in range(16))),
            Define(0, STEP.body),
            Site(0, 0),
        ):
            assert list(session.take(message)) == [None]
        yield session


def step(segment, first=False):
    slots = (0, 0, 1, 0, 0, 1, 0, 2, 0, 0, 2, 0, 3, 0, 0) if first else None
    return Run(segment, 0, slots, (0, 0) if first else None, (2, 0) if first else None, None, (2, 0), segment)


def said(session, segment, first=False):
    """The replies to a step and what it answers."""
    replies = [reply for reply in session.take(step(segment, first)) if reply is not None]
    return replies + session.ahead.answers()


def number(reply):
    (value,) = reply.values
    return int.from_bytes(value.data, "little")


def repeat(session, steps=3):
    for n in range(steps):
        (values,) = said(session, 10 + n, first=not n)
        assert number(values) == (n + 1) ** 2


def go(session):
    return session.ahead.go(session.ahead.coming())


def test_what_comes_next_is_begun_while_an_answer_is_computed(device):
    repeat(device)
    assert list(device.take(step(13))) == [None]
    assert device.ahead.client_waits
    assert device.ahead.answers(wait=False) == []
    (values,) = go(device)  # the next question waits for the answer to this one
    assert isinstance(values, Values)
    assert (values.ticket, number(values)) == (13, 16)
    device.there = True
    (early,) = device.ahead.answers(wait=False)
    assert isinstance(early, Early)
    assert (early.ticket, number(early)) == (14, 25)


def test_a_confirmation_of_a_question_waits_for_its_answer(device):
    repeat(device)
    assert go(device) == []
    early, nothing = device.take(Confirm(1, 0))
    assert (early.ticket, number(early)) == (13, 16)
    assert nothing is None
    assert device.ahead.answers() == []


def test_an_answer_is_void_when_the_client_does_something_else(device):
    repeat(device)
    go(device)
    replies = list(device.take(Fetch(99, (1, 0, 0))))
    assert isinstance(replies[0], Early)  # it may still have been what was asked for
    assert Undone(1) in replies
    (values,) = device.ahead.answers()
    assert number(values) == 3


def test_beyond_a_table_what_ran_ahead_is_undone_and_what_was_said_ends_the_worker(device):
    repeat(device, 15)
    assert go(device) == []
    assert device.ahead.answers() == [Undone(1)]
    assert device.values.tensors[1, 0, 0].item() == 15
    assert device.ahead.coming() is None
    with pytest.raises(DeviceBroken) as broken:
        said(device, 25)
    assert broken.value.segment == 25


def test_what_ends_the_worker_is_no_failure_of_what_runs_ahead(device):
    """The client asked for what lies beyond the table; that is known when the next program has been begun."""
    repeat(device, 15)
    assert list(device.take(step(25))) == [None]
    with pytest.raises(DeviceBroken) as broken:
        go(device)
    assert broken.value.segment == 25


def test_only_what_the_client_waits_for_holds_up_the_next_program(device):
    asked = []
    device.device.reading = lambda tensors, bounds: LateReading(tensors, bounds, lambda: False, asked)
    repeat(device)
    now = time.perf_counter()
    list(device.take(step(13)))
    device.ahead.answers(wait=False)
    go(device)
    device.ahead.answers(wait=False)
    said_until, ahead_until = asked
    assert said_until > now
    assert ahead_until == 0.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_read_as_it_was_at_that_place_of_its_stream():
    values = torch.arange(6.0, device="cuda:0").view(2, 3).t()
    reading = Reading([values], Bounds(values.device))
    values.zero_()
    ((copy, strides),) = reading.copies()
    assert copy.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert strides == (1, 3)
    assert reading.done(0.0)


def test_a_question_behind_one_that_cannot_be_believed_is_undone_too(device):
    repeat(device, 14)
    device.ahead._decisions.depth.programs = 8
    before = device.values.count
    assert go(device) == []
    assert number(go(device)[0]) == 15**2
    assert go(device) == [Undone(2)]
    assert device.values.tensors[1, 0, 0].item() == 14
    assert device.values.count == before
    assert device.ahead.coming() is None
