"""Indices are brought into range, a flag remembers it, and what runs ahead of a program's end is undone by it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from remora.executor.worker.bounds import Bounds
from remora.executor.worker.failure import DeviceBroken, OutOfRange
from remora.executor.worker.kernels import kernel_of
from remora.ir.graph import Template
from remora.ir.node import Hole, Items, Node, Ref, Slot
from remora.ops.schema import resolve
from remora.wire.messages import Define, Early, Fetch, Put, Run, RunAhead, Site, Undone, Values
from worker_endpoint import worker_session

CPU = torch.device("cpu")
TABLE = torch.arange(12.0).reshape(4, 3)
S0, S1, S2 = Slot(0), Slot(1), Slot(2)


def checked(bounds, name, args):
    op = resolve(name)
    node = Node(name, args)
    return bounds.checked(op, node, kernel_of(op, node))


@pytest.mark.parametrize(
    ("name", "args", "items", "good", "bad"),
    [
        ("aten.embedding.default", (S0, S1), lambda i: (TABLE, i), [0, 3], [1, 4]),
        ("aten.index_select.default", (S0, Hole("int"), S1), lambda i: (TABLE, 1, i), [0, 2], [3]),
        ("aten.index_select.default", (S0, Hole("int"), S1), lambda i: (TABLE, -1, i), [0, 2], [-1]),
        (
            "aten.gather.default",
            (S0, Hole("int"), S1),
            lambda i: (TABLE, 0, i.expand(3, 1).t().contiguous()),
            [3],
            [4],
        ),
        ("aten.index.Tensor", (S0, Items((S1,))), lambda i: (TABLE, [i]), [-4, 3], [-5]),
        ("aten.index.Tensor", (S0, Items((S1,))), lambda i: (TABLE, [None, i]), [-3, 2], [3]),
        (
            "aten.index_copy.default",
            (S0, Hole("int"), S1, S2),
            lambda i: (TABLE, 0, i, torch.ones(len(i), 3)),
            [2],
            [4],
        ),
    ],
)
def test_an_index_out_of_range_is_noticed_and_one_in_range_changes_nothing(name, args, items, good, bad):
    bounds = Bounds(CPU)
    call = checked(bounds, name, args)
    inside = items(torch.tensor(good))
    assert torch.equal(call(*inside), resolve(name)(*inside))
    bounds.check()
    call(*items(torch.tensor(bad)))
    with pytest.raises(OutOfRange):
        bounds.check()
    bounds.check()


def test_masks_are_no_indices():
    bounds = Bounds(CPU)
    call = checked(bounds, "aten.index.Tensor", (S0, Items((S1,))))
    mask = torch.tensor([True, False, True, False])
    assert torch.equal(call(TABLE, [mask]), TABLE[mask])
    bounds.check()


def test_other_rows_are_called_as_they_are():
    op, node = resolve("aten.add.Tensor"), Node("aten.add.Tensor", (S0, S1))
    call = kernel_of(op, node)
    assert Bounds(CPU).checked(op, node, call) is call


# cache[at] = at, at += 1, read what is there
STEP = Template(
    (
        Node("aten.index_copy_.default", (S0, Hole("int"), S1, S2)),
        Node("aten.index_select.default", (S0, Hole("int"), S1)),
        Node("aten.add_.Tensor", (S1, Hole("int"))),
        Node("aten.sum.default", (Ref(1),)),
    )
)


@pytest.fixture
def session():
    with worker_session() as session:
        session.bounds = Bounds(CPU)
        yield session


def begin(session, rows):
    for message in (
        RunAhead(64),
        Put(1, "float32", (rows,), bytes(4 * rows)),
        Put(2, "int64", (1,), bytes(8)),
        Put(3, "float32", (1,), bytes(4)),
        Define(0, STEP.body),
        Site(0, 0),
    ):
        assert list(session.take(message)) == [None]


def step(segment, first=False):
    slots = (0, 0, 1, 0, 0, 1, 0, 2, 0, 0, 2, 0, 3, 0, 0) if first else None
    holes = (0, 0, 1, 0, 2, 1) if first else None
    return Run(segment, 0, slots, holes, (3, 0) if first else None, None, (3, 0), segment)


def test_what_runs_ahead_beyond_the_end_is_undone_and_nobody_notices(session):
    begin(session, 8)
    early = 0
    for n in range(8):
        list(session.take(step(10 + n, first=not n)))
        while (coming := session.ahead.coming()) is not None:
            early += sum(isinstance(reply, Early) for reply in session.ahead.go(coming))
    assert session.values.tensors[2, 0, 0].item() == 8
    assert session.failed is None
    assert early >= 4


def test_out_of_range_in_what_the_program_says_ends_the_worker_as_it_does_without(session):
    begin(session, 2)
    list(session.take(step(10, first=True)))
    list(session.take(step(11)))
    with pytest.raises(DeviceBroken):
        list(session.take(step(12)))


def test_a_program_that_is_undone_is_told(session):
    begin(session, 4)
    for n in range(3):
        list(session.take(step(10 + n, first=not n)))
    before = session.values.tensors[1, 0, 0].clone(), session.values.tensors[2, 0, 0].clone()
    (first,), (second,) = (session.ahead.go(session.ahead.coming()) for _ in range(2))
    assert first.ticket == 13
    assert isinstance(second, Undone)
    assert torch.equal(session.values.tensors[1, 0, 0], before[0])
    assert torch.equal(session.values.tensors[2, 0, 0], before[1])
    assert session.ahead.coming() is None


# tokens[:, n:n + 1], with n from the program
SLICED = Template(
    (
        Node("aten.slice.Tensor", (S0, Hole("int"), Hole("int"), Hole("int"), Hole("int"))),
        Node("aten.sum.default", (Ref(0),)),
    )
)


def test_nothing_runs_ahead_beyond_the_end_of_what_a_loop_counts_through(session):
    for message in (
        RunAhead(64),
        Put(1, "float32", (9,), bytes(36)),
        Define(0, SLICED.body),
        Site(0, 0),
    ):
        list(session.take(message))
    early = 0
    for n in range(9):
        slots = (0, 0, 1, 0, 0) if not n else None
        holes = (0, 0, 1, 0, 2, 1, 3, 1) if not n else (1, n, 2, n + 1)
        list(session.take(Run(10 + n, 0, slots, holes, (1, 0) if not n else None, None, (1, 0), 10 + n)))
        while (coming := session.ahead.coming()) is not None:
            assert coming.holes[1] < 10
            early += sum(isinstance(reply, Early) for reply in session.ahead.go(coming))
    assert early >= 4
    assert session.failed is None


def test_what_was_undone_leaves_no_mark(session):
    begin(session, 4)
    for n in range(3):
        list(session.take(step(10 + n, first=not n)))
    session.ahead.go(session.ahead.coming())
    session.ahead.go(session.ahead.coming())
    *_, answer = session.take(Fetch(99, (2, 0, 0)))
    assert isinstance(answer, Values)
