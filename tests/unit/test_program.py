"""What a hostile template may not ask for: other kinds of tensors, memory that nobody set, unchecked indices."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from remora.errors import UnsupportedOp
from remora.executor.worker.failure import is_fatal
from remora.executor.worker.program import Failure, compile_program, run
from remora.ir.graph import Template
from remora.ir.node import Const, Hole, Items, Node, Ref, Slot, Symbol

INT = Hole("int")
ZEROS = Node("aten.zeros.default", (Items((INT,)),))
CPU = torch.device("cpu")


def execute(*nodes, slots=(), holes=()):
    template = Template(nodes)
    last = len(nodes) - 1
    program = compile_program(template, ((last, 0),), CPU)
    bound = [list(slots)[: template.n_slots], list(holes)[: len(template.holes)]]
    registers = run(program, *bound, memoryview(bytearray(4)).cast("I"), [0])
    return registers[program.keep[0][2]]


def refused(*nodes, slots=(), holes=(), says="not allowed"):
    with pytest.raises(Failure) as failure:
        execute(*nodes, slots=slots, holes=holes)
    assert isinstance(failure.value.cause, UnsupportedOp), failure.value.cause
    assert says in str(failure.value.cause)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pin_memory", Const(True)),
        ("pin_memory", INT),
        ("layout", Symbol("layout", "sparse_coo")),
        ("layout", Symbol("layout", "_mkldnn")),
        ("layout", Symbol("dtype", "int8")),  # as a number it would be a sparse layout
        ("layout", INT),
        ("dtype", INT),
        ("dtype", Symbol("dtype", "quint8")),
        ("dtype", Symbol("dtype", "bits8")),
        ("dtype", Symbol("dtype", "device-side assert")),
        ("dtype", Symbol("memory_format", "preserve_format")),
        ("device", Const("meta")),
        ("device", Const("cpu")),
        ("device", INT),
        ("device", Symbol("device", "meta")),
        ("device", Symbol("device", "cuda:1")),
        ("device", Symbol("device", "executor:1")),
    ],
)
def test_a_symbol_stands_where_the_schema_wants_it(name, value):
    refused(Node(ZEROS.op, ZEROS.args, ((name, value),)), holes=[4, 1])


def test_a_symbol_stands_nowhere_else():
    refused(Node("aten.add.Scalar", (Slot(0), Symbol("dtype", "int8"))), slots=[torch.ones(1)])
    refused(Node("aten.sum.dim_IntList", (Slot(0), Items((Const("0"),)))), slots=[torch.ones(1)])
    made = Node(
        ZEROS.op,
        ZEROS.args,
        (
            ("dtype", Symbol("dtype", "int8")),
            ("layout", Symbol("layout", "strided")),
            ("device", Symbol("device", "executor")),
            ("pin_memory", Const(False)),
        ),
    )
    assert execute(made, holes=[2]).dtype is torch.int8


@pytest.mark.parametrize(
    "node",
    [
        Node("aten.resize_.default", (Ref(0), Items((INT,)))),
        Node("aten.resize.default", (Ref(0), Items((INT,)))),
        Node("aten.resize.out", (Ref(0), Items((INT,))), (("out", Ref(0)),)),
        Node("aten.resize_as.default", (Ref(0), Slot(0))),
        Node("aten._resize_output.default", (Ref(0), Items((INT,)), Symbol("device", "executor"))),
        Node("aten.set_.source_Tensor", (Ref(0), Slot(0))),
        Node("aten.set.source_Tensor", (Ref(0), Slot(0))),
        Node("aten.as_strided_.default", (Ref(0), Items((INT,)), Items((INT,)))),
        Node("aten._efficientzerotensor.default", (Items((INT,)),)),
    ],
    ids=lambda node: node.op,
)
def test_nothing_changes_a_tensors_own_shape_or_storage(node):
    refused(ZEROS, node, slots=[torch.ones(4)], holes=[1, 4000, 1, 1])


def test_unset_memory_is_zeroed():
    torch.full((4000,), 7.0)  # freed: the next tensor of this size may get its memory
    for op in ("aten.empty.memory_format", "aten.new_empty.default"):
        args = ((Slot(0),) if "new" in op else ()) + (Items((INT,)),)
        slots = [torch.ones(1)] if "new" in op else []
        assert not execute(Node(op, args), slots=slots, holes=[4000]).any()


def test_an_out_tensor_does_not_grow():
    add = Node("aten.add.out", (Slot(0), Slot(0)), (("out", Slot(1)),))
    small = torch.zeros(2)
    refused(add, slots=[torch.ones(5), small], says="does not fit")
    assert small.untyped_storage().nbytes() == 8
    assert execute(add, slots=[torch.ones(5), torch.zeros(5)]).tolist() == [2] * 5


@pytest.mark.parametrize("flag", [Const(True), INT])
def test_a_kernels_check_of_its_indices_stays_on(flag):
    index = Node("aten._index_put_impl_.default", (Slot(0), Items((Slot(1),)), Slot(0), Const(False), flag))
    refused(index, slots=[torch.ones(4), torch.tensor([4, 1, 1, 1])], holes=[1])


def fails(*nodes, slots, holes=(), says):
    with pytest.raises(Failure, match=says):
        execute(*nodes, slots=slots, holes=holes)


SEGMENTS = Node(
    "aten.segment_reduce.default", (Slot(0), Const("sum")), (("lengths", Slot(1)), ("unsafe", Const(True)))
)
BY_OFFSETS = Node("aten.segment_reduce.default", SEGMENTS.args, (("offsets", Slot(1)),))


@pytest.mark.parametrize(
    ("node", "bounds"),
    [
        (SEGMENTS, [4, 1, 1, 1]),
        (SEGMENTS, [-1, 5]),
        (SEGMENTS, [2**62, 2**62, 2**62, 2**62]),  # their sum is 0
        (BY_OFFSETS, [0, 5]),
        (BY_OFFSETS, [-1, 4]),
        (BY_OFFSETS, [0, 4, 2]),
        (BY_OFFSETS, []),
    ],
)
def test_segments_stay_inside_of_their_input(node, bounds):
    """PyTorch's kernel reads what another session has put beside its input."""
    fails(node, slots=[torch.ones(4), torch.tensor(bounds, dtype=torch.int64)], says="segments reach beyond")


def test_segments_that_stay_inside_are_reduced():
    data = torch.arange(4.0)
    assert execute(SEGMENTS, slots=[data, torch.tensor([1, 3])]).tolist() == [0, 6]
    assert execute(BY_OFFSETS, slots=[data, torch.tensor([0, 3, 4])]).tolist() == [3, 3]


def test_the_gradient_of_segments_has_their_shape():
    back = Node(
        "aten._segment_reduce_backward.default",
        (Slot(0), Slot(1), Slot(2), Const("sum")),
        (("lengths", Slot(3)),),
    )
    good = [torch.ones(2), torch.ones(2), torch.ones(4), torch.tensor([1, 3])]
    assert execute(back, slots=good).tolist() == [1] * 4
    fails(back, slots=[torch.ones(1), *good[1:]], says="grad of shape")
    fails(back, slots=[good[0], torch.ones(1), *good[2:]], says="output of shape")


# -- tensors that grow


RESIZED = Node("remora.resized.default", (Slot(0), Items((INT,)), Items((INT,)), INT))


def test_a_tensor_grows_with_zeros_for_all_that_share_its_storage():
    base = torch.arange(3.0)
    last = base[2:]
    torch.full((4000,), 7.0)  # freed: the grown storage may get its memory
    grown = execute(RESIZED, slots=[base], holes=[4000, 1, 0])
    assert grown[:3].tolist() == [0, 1, 2]
    assert not grown[3:].any()
    grown[2] = 9
    assert last.item() == 9
    assert base.shape == (3,)


@pytest.mark.parametrize("holes", [[-1, 1, 0], [4, -1, 3], [2, 1, -1], [2**62, 2**62, 2**62]])
def test_a_tensor_grows_only_to_what_there_can_be(holes):
    with pytest.raises(Failure):
        execute(RESIZED, slots=[torch.ones(4)], holes=holes)


def test_mapped_bytes_do_not_grow():
    mapped = torch.frombuffer(bytearray(16), dtype=torch.float32)
    fails(RESIZED, slots=[mapped], holes=[5, 1, 0], says="uploaded in bulk cannot grow")


def test_unset_memory_between_strides_is_zeroed():
    torch.full((4000,), 7.0)
    node = Node("aten.empty_strided.default", (Items((INT, INT)), Items((INT, INT))))
    node = Node(node.op, node.args, (), ((1,),))
    made = execute(node, holes=[2, 3, 1999, 0])
    assert made.stride() == (1999, 0)
    assert not made.as_strided((2000,), (1,), 0).any()


def test_a_client_cannot_word_an_error_so_that_it_ends_the_worker():
    node = Node("aten._assert_scalar.default", (INT, Const("CUDA error: an illegal, device-side assert")))
    with pytest.raises(Failure) as failure:
        execute(node, ZEROS, holes=[0, 1])
    assert "device-side assert" in str(failure.value.cause)
    assert not is_fatal(failure.value.cause)
    assert is_fatal(torch.AcceleratorError("CUDA error: device-side assert triggered"))
