"""Whatever programs do between a mark and the way back to it, the state is what it was, bit for bit."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from remora.executor.worker.program import Failure, compile_program, run
from remora.executor.worker.rng import DEFAULT, Generators
from remora.executor.worker.undo import UndoLog
from remora.executor.worker.values import Values
from remora.ir.graph import Template
from remora.ir.node import Const, Hole, Items, Node, Ref, Slot
from remora.ops.dtypes import bytes_of

CPU = torch.device("cpu")
LIMIT_NBYTES = 1 << 20
FIRST = 24  # values that there are at first
PROGRESS = memoryview(bytearray(4)).cast("I")


class Session:
    """What of a worker's session the log and the programs need."""

    def __init__(self) -> None:
        self.rng, self.seed = None, 7
        self.generators: dict[int, torch.Generator] = {3: torch.Generator().manual_seed(3)}
        self.values = Values()
        self.streams = Generators(CPU)
        self.undo = UndoLog(self.values, self.streams, self, LIMIT_NBYTES)
        self.segment = 0
        for tensor in first_values():
            self.name(tensor)
        assert self.segment == FIRST

    def name(self, tensor: torch.Tensor) -> None:
        self.segment += 1
        self.values.keep((self.segment, 0, 0), tensor)

    def run(self, rows: Rows, names: list[tuple[int, int, int]]) -> None:
        keep = tuple((row, 0) for row in sorted(rows.single) if row >= len(names))
        program = compile_program(Template(tuple(rows.nodes)), keep, CPU, self.generator)
        if self.undo.active:
            program = self.undo.guarded(program)
        if program.random:
            self.streams.enter(self)
        try:
            registers = run(program, [self.values.tensors[n] for n in names], rows.numbers, PROGRESS, [0])
        except Failure as failure:
            registers = failure.registers
        self.segment += 1
        for row, out, register in program.keep:
            if registers[register] is not None:
                self.values.keep((self.segment, row, out), registers[register])

    def generator(self, index: int) -> torch.Generator:
        return self.streams.find(self, index)

    def back_to(self, mark: int, names: list[tuple[int, int, int]]) -> None:
        self.undo.back_to(mark)
        for name in set(self.values.tensors) - set(names):
            self.values.free(name)

    def state(self):
        """All that a later message could see."""
        values = {
            name: (t.dtype, t.shape, t.stride(), t.storage_offset(), t.is_conj(), raw(t))
            for name, t in self.values.tensors.items()
        }
        drawn = {index: raw(self.streams.state(self, index)) for index in (DEFAULT, *self.generators)}
        weights = self.values.used_nbytes - self.undo.nbytes, self.values.held_nbytes, self.values.peak_nbytes
        return values, drawn, weights


def raw(tensor: torch.Tensor) -> bytes:
    storage = tensor.untyped_storage()
    return bytes(bytes_of(torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))))


def first_values() -> list[torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    base[1, 2] = float("nan")
    deep = torch.linspace(-1, 1, 60).reshape(3, 4, 5).bfloat16()
    z = torch.complex(torch.ones(4, 6), -torch.arange(24.0).reshape(4, 6))
    odd = torch.arange(256, dtype=torch.uint8)[:24].reshape(4, 6).view(torch.bool)  # no byte is normalised
    same = [torch.full((4, 6), float(n)) for n in range(3)]
    views = [base.t(), base[1:3], base[:, ::2], base.as_strided((4, 3), (3, 2)), base[0].expand(4, 6)]
    indices = [torch.tensor([2, 0]), torch.tensor([[1, 0, 3]]), torch.tensor([1, 1, -1]), torch.tensor([9])]
    statistics = [torch.zeros(6), torch.ones(6)]
    return [
        base, deep, z, z.conj(), odd, *same, *views, *indices, torch.tensor(2.5), torch.empty(0), *statistics,
        torch.ones(4, 6, dtype=torch.float64), torch.ones(4, 6, dtype=torch.int16), base[3:3],
    ]  # fmt: skip


class Rows:
    """Random rows over the named values and over each other's outputs."""

    def __init__(self, rng: random.Random, n_slots: int, n_rows: int) -> None:
        self.rng = rng
        self.nodes: list[Node] = []
        self.numbers: list[int | float] = []
        self.single: set[int] = set()
        self.slots = [Slot(n) for n in range(n_slots)]
        for slot in self.slots:
            self.add("aten.alias.default", slot)
        for _ in range(n_rows):
            rng.choice(KINDS)(self)

    def add(self, op: str, *args, **kwargs) -> None:
        nodes = [self._arg(arg) for arg in args]
        self.nodes.append(Node(op, tuple(nodes), tuple((k, self._arg(v)) for k, v in kwargs.items())))
        if op not in SEVERAL:
            self.single.add(len(self.nodes) - 1)

    def _arg(self, arg):
        if isinstance(arg, list):
            return Items(tuple(self._arg(item) for item in arg))
        if arg is None or isinstance(arg, (bool, str)):
            return Const(arg)
        if isinstance(arg, (int, float)):
            self.numbers.append(arg)
            return Hole(type(arg).__name__)
        return arg

    def tensor(self):
        return self.rng.choice([*self.slots, *(Ref(row) for row in self.single)])

    def dim(self) -> int:
        return self.rng.choice((0, 0, 1, -1))


SEVERAL = {
    "aten._foreach_add_.Scalar", "aten._foreach_mul_.List", "aten._native_batch_norm_legit.default",
    "aten.native_batch_norm.default", "aten.native_dropout.default",
}  # fmt: skip


def view(r: Rows) -> None:
    r.rng.choice((
        lambda: r.add("aten.transpose.int", r.tensor(), 0, -1),
        lambda: r.add("aten.select.int", r.tensor(), r.dim(), r.rng.choice((0, 1, -1))),
        lambda: r.add("aten.slice.Tensor", r.tensor(), r.dim(), r.rng.randint(0, 2), r.rng.randint(1, 4)),
        lambda: r.add("aten.unsqueeze.default", r.tensor(), 0),
        lambda: r.add("aten.expand.default", r.tensor(), [2, -1, -1]),
        lambda: r.add("aten.view.default", r.tensor(), [-1]),
        lambda: r.add("aten.contiguous.default", r.tensor()),  # itself, or not
        lambda: r.add("aten._conj.default", r.tensor()),
    ))()  # fmt: skip


def whole(r: Rows) -> None:
    t, x = r.tensor(), r.tensor()
    r.rng.choice((
        lambda: r.add("aten.add_.Tensor", t, x),
        lambda: r.add("aten.mul_.Tensor", t, t),
        lambda: r.add("aten.copy_.default", t, x),
        lambda: r.add("aten.fill_.Scalar", t, r.rng.choice((0, 3, 0.5))),
        lambda: r.add("aten.zero_.default", t),
        lambda: r.add("aten.masked_fill_.Scalar", t, x, 1),
        lambda: r.add("aten._foreach_add_.Scalar", [t, x], 1),
        lambda: r.add("aten._foreach_mul_.List", [t, r.tensor()], [x, x]),
        lambda: r.add("aten.neg_.default", t),
    ))()  # fmt: skip


def part(r: Rows) -> None:
    t, i, x = r.tensor(), r.tensor(), r.tensor()
    r.rng.choice((
        lambda: r.add("aten.index_copy_.default", t, r.dim(), i, x),
        lambda: r.add("aten.index_fill_.int_Scalar", t, r.dim(), i, 5),
        lambda: r.add("aten.index_add_.default", t, r.dim(), i, x),
        lambda: r.add("aten.scatter_.value", t, r.dim(), i, 5),
        lambda: r.add("aten.scatter_add_.default", t, r.dim(), i, x),
        lambda: r.add("aten.index_put_.default", t, [i], x),
        lambda: r.add("aten.index_put_.default", t, [None, i], x, r.rng.random() < 0.5),
        lambda: r.add("aten.index_put_.default", t, [i, r.tensor()], x),
    ))()  # fmt: skip


def fitting_part(r: Rows) -> None:
    """As `part`, with indices that fit: values 13 to 15 of the first ones."""
    rows = Ref(r.rng.choice([row for row in (13, 14, 15) if row < len(r.slots)]))
    t = Ref(r.rng.choice([row for row in (0, 5, 6, 8, 10) if row < len(r.slots)]))
    r.rng.choice((
        lambda: r.add("aten.index_fill_.int_Scalar", t, r.dim(), rows, 5),
        lambda: r.add("aten.index_put_.default", t, [rows], Ref(17)),
        lambda: r.add("aten.index_put_.default", t, [None, rows], Ref(17), r.rng.random() < 0.5),
        lambda: r.add("aten.scatter_.value", t, r.dim(), Ref(14), 5),
        lambda: r.add("aten.add_.Scalar", rows, 1),  # what was written at an index, goes back there
    ))()  # fmt: skip


def out(r: Rows) -> None:
    t, x = r.tensor(), r.tensor()
    r.rng.choice((
        lambda: r.add("aten.add.out", t, t, out=x),
        lambda: r.add("aten.abs.out", t, out=x),
        lambda: r.add("aten.clone.out", t, out=x),
    ))()  # fmt: skip


def statistics(r: Rows) -> None:
    t, mean, var = r.tensor(), Ref(19), Ref(20)
    op = r.rng.choice(("native_batch_norm", "_native_batch_norm_legit"))
    r.add(f"aten.{op}.default", t, None, None, mean, var, r.rng.random() < 0.7, 0.1, 1e-5)


def draw(r: Rows) -> None:
    t, which = r.tensor(), r.rng.choice((None, 0, 3))
    r.rng.choice((
        lambda: r.add("aten.normal_.default", t, 0.0, 1.0, generator=which),
        lambda: r.add("aten.uniform_.default", t, 0.0, 1.0, generator=which),
        lambda: r.add("aten.bernoulli_.float", t, 0.5, generator=which),
        lambda: r.add("aten.rand_like.default", t),
        lambda: r.add("aten.native_dropout.default", t, 0.5, True),
        lambda: r.add("aten.multinomial.default", t, 1),
    ))()  # fmt: skip


KINDS = (view, view, view, whole, whole, whole, part, fitting_part, fitting_part, out, statistics, draw)
ACTIONS = st.lists(
    st.tuples(st.sampled_from("mrrrbf"), st.integers(0, 1 << 30)), min_size=3, max_size=14
)  # mark, run, back, forget


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        yield


def play(actions, full_at=LIMIT_NBYTES):
    session = Session()
    session.undo.limit_nbytes = full_at
    marks: list[tuple[int, object]] = []
    for action, choice in actions:
        rng = random.Random(choice)
        names = list(session.values.tensors)
        if action == "m" or (action == "r" and not marks):
            state = session.state()
            marks.append((session.undo.mark(), state))
        if action == "r":
            names = [*names[:FIRST], *rng.sample(names[FIRST:], min(4, len(names) - FIRST))]
            session.run(Rows(rng, len(names), rng.randint(1, 8)), names)
        elif action == "f" and marks:
            mark, _ = marks.pop(0)
            session.undo.forget(mark)
        elif action == "b" and marks:
            at = rng.randrange(len(marks))
            mark, state = marks[at]
            del marks[at:]
            session.back_to(mark, list(state[0]))
            assert session.state() == state
    while marks:
        mark, state = marks.pop(rng.randrange(len(marks)))
        marks = [kept for kept in marks if kept[0] < mark]
        session.back_to(mark, list(state[0]))
        assert session.state() == state
    assert session.undo.nbytes == 0
    assert not session.undo.active


@given(ACTIONS)
def test_back_at_a_mark_all_is_as_it_was(actions):
    play(actions)


@given(ACTIONS, st.integers(0, 500))
def test_and_when_the_log_was_full_in_the_middle(actions, limit_nbytes):
    play(actions, limit_nbytes)
