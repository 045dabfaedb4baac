"""What the undo log saves, and how little of it; what it cannot undo."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from remora.executor.worker.program import Failure, compile_program, run
from remora.executor.worker.session import WorkerSession
from remora.executor.worker.undo import MAX_NBYTES, CannotUndo, log_limit_nbytes
from remora.executor.worker.writes import write_of
from remora.ir.graph import Template
from remora.ir.node import Const, Hole, Items, Node, Ref, Slot
from remora.ops.permission import _all_ops, allowed
from remora.ops.schema import op_name, traits
from remora.wire.messages import Define, Failed, LoadRng, Run, SaveRng, Seed, Site
from worker_endpoint import worker_session

INT, FLOAT = Hole("int"), Hole("float")


@pytest.fixture
def session():
    with worker_session() as session:
        yield session


class Play:
    """Runs rows over tensors as a client would, without the wire."""

    def __init__(self, session: WorkerSession) -> None:
        self.session, self.segment = session, 0

    def value(self, tensor: torch.Tensor) -> torch.Tensor:
        self.segment += 1
        self.session.values.keep((self.segment, 0, 0), tensor)
        return tensor

    def program(self, *nodes: Node):
        device = self.session.device.device
        return compile_program(Template(nodes), (), device, self.session._generator)

    def run(self, *nodes: Node, slots=(), holes=()) -> None:
        program = self.session.undo.guarded(self.program(*nodes))
        self.session.device.generators.enter(self.session)
        run(program, list(slots), list(holes), self.session.device.progress, [0])


@pytest.fixture
def play(session):
    return Play(session)


def test_an_append_to_a_static_cache_saves_its_row_alone(session, play):
    cache, row = play.value(torch.randn(2, 4, 100, 8)), play.value(torch.ones(2, 4, 1, 8))
    at, first = play.value(torch.tensor([7])), cache.clone()
    copy = Node("aten.index_copy_.default", (Slot(0), INT, Slot(1), Slot(2)))
    mark = session.undo.mark()
    play.run(copy, copy, slots=[cache, at, row], holes=[2, 2])
    assert session.undo.nbytes == 2 * row.nbytes + at.nbytes  # the index once
    assert cache[0, 0, 7].tolist() == [1.0] * 8
    session.undo.back_to(mark)
    assert torch.equal(cache, first)
    assert session.undo.nbytes == 0


@pytest.mark.parametrize(
    ("node", "holes", "nbytes"),
    [
        (Node("aten.index_put_.default", (Slot(0), Items((Slot(1),)), Slot(2))), [], 2 * 40 + 16),
        (
            Node("aten.index_put_.default", (Slot(0), Items((Const(None), Slot(1))), Slot(2))),
            [],
            2 * 400 + 16,
        ),
        (Node("aten.index_fill_.int_Scalar", (Slot(0), INT, Slot(1), INT)), [0, 5], 2 * 40 + 16),
        (Node("aten.scatter_.value", (Slot(0), INT, Slot(3), INT)), [1, 5], 2 * 4 + 16),
        (Node("aten.add_.Tensor", (Slot(0), Slot(2))), [], 4000),
    ],
)
def test_what_is_written_at_indices_is_saved_there(session, play, node, holes, nbytes):
    t = play.value(torch.randn(100, 10))
    at, one, points = torch.tensor([3, 5]), torch.ones(1), torch.tensor([[2, 2]])
    slots = [t, *(play.value(x) for x in (at, one, points))]
    first = t.clone()
    mark = session.undo.mark()
    used = [Node("aten.alias.default", (Slot(n),)) for n in range(4)]
    play.run(*used, node, slots=slots, holes=holes)
    assert not torch.equal(t, first)
    assert session.undo.nbytes == nbytes
    session.undo.back_to(mark)
    assert torch.equal(t, first)


def test_a_slice_is_saved_without_its_tensor_and_once_a_message(session, play):
    t = play.value(torch.randn(100, 10))
    first = t.clone()
    rows = (
        Node("aten.select.int", (Slot(0), INT, INT)),  # made after the mark, of memory made before
        Node("aten.copy_.default", (Ref(0), Slot(1))),
        Node("aten.mul_.Tensor", (Ref(0), Slot(1))),
    )
    marks = []
    for number in (3, 3, 4):
        marks.append(session.undo.mark())
        play.run(*rows, slots=[t, torch.ones(10)], holes=[0, number])
    assert session.undo.nbytes == 3 * 40
    session.undo.forget(marks[0])
    assert session.undo.nbytes == 2 * 40
    session.undo.back_to(marks[1])
    assert t[3].tolist() == [1.0] * 10
    assert torch.equal(t[4:], first[4:])
    assert not session.undo.active


def test_what_a_program_made_itself_costs_nothing(session, play):
    session.undo.mark()
    made = Node("aten.add.Tensor", (Slot(0), Slot(0)))
    play.run(made, Node("aten.zero_.default", (Ref(0),)), slots=[play.value(torch.ones(9))])
    assert session.undo.nbytes == 0


def test_an_index_that_changes_afterwards_is_remembered(session, play):
    t, at = play.value(torch.arange(40.0)), play.value(torch.tensor([1, 2]))
    first = t.clone()
    fill = Node("aten.index_fill_.int_Scalar", (Slot(0), INT, Slot(1), INT))
    shift = Node("aten.add_.Tensor", (Slot(1), Slot(1)))
    mark = session.undo.mark()
    play.run(shift, fill, shift, fill, shift, slots=[t, at], holes=[0, -1, 0, -2])
    assert t[2] == -1
    assert t[4] == -2
    assert t[8] == -2
    session.undo.back_to(mark)
    assert torch.equal(t, first)
    assert at.tolist() == [1, 2]


def test_an_index_written_while_nothing_was_to_be_undone_is_saved_anew(session, play):
    t, at = play.value(torch.arange(40.0)), play.value(torch.tensor([1, 2]))
    fill = Node("aten.index_fill_.int_Scalar", (Slot(0), INT, Slot(1), INT))
    session.undo.forget(session.undo.mark())
    mark = session.undo.mark()
    play.run(fill, slots=[t, at], holes=[0, -1])
    session.undo.forget(mark)
    at.add_(5)
    first = t.clone()
    mark = session.undo.mark()
    play.run(fill, slots=[t, at], holes=[0, -1])
    session.undo.back_to(mark)
    assert torch.equal(t, first)


def test_optimizers_and_running_statistics(session, play):
    tensors = [play.value(torch.randn(6)) for _ in range(4)] + [play.value(torch.zeros(())) for _ in range(2)]
    x = play.value(torch.randn(3, 6))
    first = [t.clone() for t in tensors]
    mark = session.undo.mark()
    lists = tuple(Items((Slot(n),)) for n in (0, 1, 2, 3))
    flags = (("amsgrad", Const(False)), ("maximize", Const(False)))
    numbers = tuple((name, FLOAT) for name in ("lr", "beta1", "beta2", "weight_decay", "eps"))
    adam = Node("aten._fused_adam_.default", (*lists, Items(()), Items((Slot(4),))), numbers + flags)
    norm = Node(
        "aten.native_batch_norm.default",
        (Slot(5), Const(None), Const(None), Slot(1), Slot(2), Const(True), FLOAT, FLOAT),
    )
    play.run(adam, norm, slots=[*tensors[:5], x], holes=[0.1, 0.9, 0.99, 0.1, 1e-8, 0.1, 1e-5])
    assert not any(torch.equal(a, b) for a, b in zip(tensors[:4], first[:4], strict=True))
    session.undo.back_to(mark)
    assert all(torch.equal(a, b) for a, b in zip(tensors, first, strict=True))


def test_evaluation_saves_nothing(session, play):
    mean, var = play.value(torch.zeros(6)), play.value(torch.ones(6))
    norm = Node(
        "aten.native_batch_norm.default",
        (Slot(0), Const(None), Const(None), Slot(1), Slot(2), Const(False), FLOAT, FLOAT),
    )
    drop = Node("aten.native_dropout.default", (Slot(0), FLOAT, Const(False)))
    session.undo.mark()
    play.run(norm, drop, slots=[play.value(torch.randn(3, 6)), mean, var], holes=[0.1, 1e-5, 0.5])
    assert session.undo.nbytes == 0


def test_without_writes_a_program_runs_as_it_is(session, play):
    program = play.program(Node("aten.add.Tensor", (Slot(0), Slot(0))))
    assert session.undo.guarded(program) is program
    writing = play.program(Node("aten.zero_.default", (Slot(0),)))
    assert session.undo.guarded(writing) is session.undo.guarded(writing) is not writing


def test_beyond_its_limit_nothing_is_written(session, play):
    t = play.value(torch.ones(100))
    session.undo.limit_nbytes = 500
    mark = session.undo.mark()
    half = Node("aten.slice.Tensor", (Slot(0), INT, INT, INT))
    rows = (half, Node("aten.zero_.default", (Ref(0),)), Node("aten.zero_.default", (Slot(0),)))
    assert not session.undo.full
    with pytest.raises(Failure) as failure:
        play.run(*rows, slots=[t], holes=[0, 0, 50])
    assert isinstance(failure.value.cause, CannotUndo)
    assert t.sum() == 50
    assert session.values.used_nbytes == 400 + 200
    session.undo.back_to(mark)
    assert t.sum() == 100
    assert session.values.used_nbytes == 400
    session.undo.limit_nbytes = 200
    session.undo.mark()
    play.run(*rows[:2], slots=[t], holes=[0, 0, 50])
    assert session.undo.full


def test_the_limit_is_an_eighth_of_the_memory_and_at_most_a_gib():
    assert log_limit_nbytes(800) == 100
    assert log_limit_nbytes(1 << 40) == MAX_NBYTES


def test_a_storage_that_grows_cannot_be_undone(session, play):
    resized = Node("remora.resized.default", (Slot(0), Items((INT,)), Items((INT,)), INT))
    with pytest.raises(CannotUndo):
        session.undo.guarded(play.program(resized))


def test_every_op_that_may_run_and_writes_says_where():
    """Called with all its arguments, by position and by keyword."""
    silent = []
    for op in _all_ops({"aten"}):
        known = traits(op)
        if not allowed(op) or not known.mutates:
            continue
        arguments = op._schema.arguments
        args = tuple(Slot(n) for n, a in enumerate(arguments) if not a.kwarg_only)
        kwargs = tuple(
            (a.name, Slot(len(args) + n)) for n, a in enumerate(a for a in arguments if a.kwarg_only)
        )
        found = write_of(op, Node(op_name(op), args, kwargs))
        named = write_of(op, Node(op_name(op), (), tuple((a.name, Slot(n)) for n, a in enumerate(arguments))))
        if not (found and named and len(found.places) == len(named.places) == len(known.mutates)):
            silent.append(op_name(op))
    assert not silent


# -- a worker's session


def place(session, *nodes):
    index = len(session.templates)
    assert session.handle(Define(index, Template(nodes).body)) is None
    assert session.handle(Site(len(session.sites), index)) is None
    return len(session.sites) - 1


def test_messages_of_a_session_are_undone(session):
    t = torch.zeros(3)
    session.values.keep((1, 0, 0), t)
    site = place(
        session, Node("aten.normal_.default", (Slot(0), FLOAT, FLOAT), (("generator", Hole("int")),))
    )
    for generator in (0, 5):
        session.handle(Seed(11, generator))
    assert session.handle(SaveRng(2, 5)) is None
    before = [session.device.generators.state(session, index) for index in (0, 5)]
    mark = session.undo.mark()
    assert session.handle(Run(3, site, (0, 0, 1, 0, 0), (0, 0.0, 1, 1.0, 2, 5), ())) is None, session.failed
    assert t.any()
    session.handle(Seed(12, 0))
    session.handle(Seed(12, 6))
    session.handle(LoadRng((2, 0, 0), 7))
    session.undo.back_to(mark)
    after = [session.device.generators.state(session, index) for index in (0, 5)]
    assert all(map(torch.equal, before, after))
    assert not t.any()
    assert set(session.generators) == {5}


def test_a_session_that_ends_holds_nothing_more(session):
    t = torch.zeros(3)
    session.values.keep((1, 0, 0), t)
    site = place(session, Node("aten.fill_.Scalar", (Slot(0), INT)))
    session.undo.mark()
    reply = session.handle(Run(3, site, (0, 0, 1, 0, 0), (0, 9), ()))
    assert not isinstance(reply, Failed)
    assert session.values.used_nbytes == 24
    assert t[0] == 9
    session.close()
    assert session.undo.nbytes == 0
    assert session.values.used_nbytes == 0
