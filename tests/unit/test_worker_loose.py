"""Graphs with kernels that PyTorch has not: caches grow in them, bit for bit; where a session is not exact, attention
and products of one row are theirs too, near to PyTorch's results, and compared.

Graphs and kernels are played by stand-ins; those of a GPU are in test_worker_graphs.py.
"""

from __future__ import annotations

import ctypes
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).parents[1]))
from graph_lane import Lane
from remora.executor.worker.attends import Attend, appends, attends
from remora.executor.worker.loose import Kernels
from remora.executor.worker.tables import PLACES, Table
from remora.ir.graph import Template
from remora.ir.node import Const, Hole, Items, Node, Ref, Slot, Symbol
from remora.ops.dtypes import bytes_of
from remora.wire.messages import Put, Recover

H, D = 2, 128  # caches are large enough to grow in place
ATTENTION = "aten.scaled_dot_product_attention.default"


class StandIn:
    """Reads the table as a graph's kernel does. wrong: what is added to a result."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.appended = 0
        self.wrong = 0.0

    def append(self, new, row, dim):
        """Gives the whole cache."""
        address, rows, length, _ = row.tolist()
        shape = (*new.shape[:dim], rows, *new.shape[dim + 1 :])
        floats = (ctypes.c_float * prod(shape)).from_address(address)
        cache = torch.frombuffer(floats, dtype=torch.float32).view(shape)
        cache.narrow(dim, length, new.shape[dim]).copy_(new)
        self.appended += 1
        return cache.narrow(dim, 0, length + new.shape[dim])

    def attend(self, query, new_keys, new_values, rows, scale):
        caches = [self.append(new, row, 2) for new, row in zip((new_keys, new_values), rows, strict=True)]
        self.lengths.append(rows[0].tolist()[2])
        made = scaled_dot_product_attention(query, *caches, scale=scale, enable_gqa=True)
        return made + self.wrong * made.abs().amax()

    def linear(self, x, weight):
        return x @ weight.T


@pytest.fixture
def kernels():
    return StandIn()


def kernels_on_cpu(kernels):
    return Kernels(torch.device("cpu"), kernels.append, kernels.attend, kernels.linear, compiling=False)


@pytest.fixture
def lane(kernels):
    lane = Lane(exact=False, kernels=kernels_on_cpu(kernels))
    with torch.inference_mode():
        yield lane
    for session in lane.sessions:
        session.close()


def grow(past, new):
    return Node("aten.cat.default", (Items((Slot(past), new)), Hole("int")))


# slots: x, weight, keys, values
STEP = (
    Node("aten.mul.Tensor", (Slot(0), Slot(1))),
    Node("aten.add.Tensor", (Ref(0), Slot(1))),
    Node("aten.mul.Tensor", (Ref(0), Ref(1))),
    grow(2, Ref(1)),
    grow(3, Ref(2)),
    Node(ATTENTION, (Ref(0), Ref(3), Ref(4)), (("scale", Hole("float")),)),
    Node("aten.add.Tensor", (Ref(5), Slot(1))),
    Node("aten.mul.Tensor", (Ref(6), Slot(0))),
    Node("aten.tanh.default", (Ref(7),)),
)


def start(lane, rows=160):
    lane.put(1, torch.rand(1, H, 1, D))
    lane.put(2, torch.rand(1, H, 1, D))
    for name in (3, 4):
        lane.put(name, torch.rand(1, H, rows, D))


def decode(lane, steps, first=10, site=None, caches=((3, 0, 0), (4, 0, 0))):
    """Runs of a step that reads the last one's result and caches; each is near to what it is without graphs."""
    site = lane.program(*STEP) if site is None else site
    last, (keys, values) = (2, 0, 0), caches
    for segment in range(first, first + steps):
        lane.run(segment, site, [last, (1, 0, 0), keys, values], (8, 0, 3, 0, 4, 0), holes=[2, 2, 0.1])
        last, keys, values = (segment, 8, 0), (segment, 3, 0), (segment, 4, 0)
        lane.near(last, keys, values)
    return site


def test_a_step_is_one_graph_whatever_the_length_of_its_caches(lane, kernels):
    start(lane)
    decode(lane, 90)
    (tier,) = lane.graphed.tiers.all()
    assert len(tier.plan.stages) == 1
    assert tier.recordings == 1
    assert tier.plan.runs > 80
    assert lane.graphed.usage.inexact_segments == tier.plan.runs
    assert kernels.lengths[-1] == 160 + 89


def test_one_graph_serves_other_caches_too(lane):
    start(lane)
    site = decode(lane, 8)
    for name in (5, 6):
        lane.put(name, torch.rand(1, H, 300, D))
    decode(lane, 8, first=100, site=site, caches=((5, 0, 0), (6, 0, 0)))
    (tier,) = lane.graphed.tiers.all()
    assert tier.recordings == 1
    assert tier.plan.runs >= 12


def test_caches_of_a_run_that_is_repeated_are_as_they_were(lane):
    """As run-ahead does, when the program turned out to do something else."""
    start(lane)
    site = decode(lane, 6)
    caches = ((15, 3, 0), (15, 4, 0))
    decode(lane, 3, first=100, site=site, caches=caches)
    lane.near((15, 3, 0), (15, 4, 0))
    decode(lane, 3, first=200, site=site, caches=caches)
    lane.near((102, 3, 0), (102, 4, 0), (15, 3, 0))


def test_results_that_are_too_far_away_are_not_used_and_counted(lane, kernels):
    start(lane)
    kernels.wrong = 0.1
    decode(lane, 12)
    assert lane.graphed.tiers.refused == 1
    (tier,) = lane.graphed.tiers.all()
    assert tier.kernels is None
    assert tier.plan is not None  # of PyTorch's kernels
    assert tier.plan.runs > 0


def test_each_kernel_is_compared_however_many_a_graph_has(lane, kernels):
    """One that is wrong by little more than it may be does not hide among many that are right."""
    nodes = list(STEP)
    for at in range(30):
        nodes.append(Node("aten.linear.default", (Ref(8 + at), Slot(4))))
    start(lane)
    lane.put(9, torch.eye(D))
    site = lane.program(*nodes)
    kernels.wrong = 2**-11
    last, keys, values = (2, 0, 0), (3, 0, 0), (4, 0, 0)
    for segment in range(10, 16):
        slots = [last, (1, 0, 0), keys, values, (9, 0, 0)]
        lane.run(segment, site, slots, (8, 0, 3, 0, 4, 0), holes=[2, 2, 0.1])
        last, keys, values = (segment, 8, 0), (segment, 3, 0), (segment, 4, 0)
    assert lane.graphed.tiers.refused == 1


def test_a_row_times_a_matrix_has_a_kernel_of_its_own(lane, kernels):
    called = []
    kernels_linear = kernels.linear
    lane.graphed.tiers.kernels.linear = lambda x, weight: called.append(x.shape) or kernels_linear(x, weight)
    start(lane)
    weight = torch.rand(24, D).bfloat16()
    lane.tell(Put(7, "bfloat16", tuple(weight.shape), bytes(bytes_of(weight))))
    row = Node("aten.select.int", (Slot(0), Hole("int"), Hole("int")))
    site = lane.program(
        row,
        Node("aten._to_copy.default", (Ref(0),), (("dtype", Symbol("dtype", "bfloat16")),)),
        Node("aten.linear.default", (Ref(1), Slot(1))),
        Node("aten.tanh.default", (Ref(2),)),
        Node("aten.neg.default", (Ref(3),)),
    )
    lane.put(8, torch.rand(1, 1, 1, D))
    for segment in range(10, 20):
        lane.run(segment, site, [(8, 0, 0), (7, 0, 0)], (4, 0), holes=[1, 0])
        lane.near((segment, 4, 0))
    assert set(called) == {(1, 1, D)}


def test_a_heavy_program_stays_interpreted(lane):
    start(lane)
    for name in (5, 6):
        lane.put(name, torch.rand(1, H, 1200, D))
    nodes = [Node("aten.mul.Tensor", (Slot(0), Slot(1)))]
    nodes += [Node("aten.add.Tensor", (Ref(at), Slot(1))) for at in range(14)]
    site = lane.program(*nodes, Node("aten.linear.default", (Ref(14), Slot(2))))
    lane.put(7, torch.rand(4, D))
    for segment in range(10, 15):
        lane.run(segment, site, [(5, 0, 0), (6, 0, 0), (7, 0, 0)], (15, 0))
        lane.near((segment, 15, 0))
    (tier,) = lane.graphed.tiers.all()
    assert tier.interpreted


@pytest.fixture
def exact(kernels):
    lane = Lane(exact=True, kernels=kernels_on_cpu(kernels))
    with torch.inference_mode():
        yield lane
    for session in lane.sessions:
        session.close()


def decode_exactly(lane, steps, first=10, site=None, caches=((3, 0, 0), (4, 0, 0)), nodes=STEP):
    """As `decode`, and each is the same to the bit."""
    site = lane.program(*nodes) if site is None else site
    last, (keys, values) = (2, 0, 0), caches
    keep = (len(nodes) - 1, 0, 3, 0, 4, 0)
    for segment in range(first, first + steps):
        lane.run(segment, site, [last, (1, 0, 0), keys, values], keep, holes=[2, 2, 0.1])
        last, keys, values = (segment, keep[0], 0), (segment, 3, 0), (segment, 4, 0)
        lane.same(last, keys, values)
    return site


def test_an_exact_session_appends_in_graphs_and_attends_with_pytorchs_kernel_between_them(exact, kernels):
    start(exact)
    decode_exactly(exact, 90)
    (tier,) = exact.graphed.tiers.all()
    rows = [[row.number for row in stage.rows] for stage in tier.plan.stages]
    assert rows == [[0, 1, 2, 3, 4], [5], [6, 7, 8]]
    assert tier.recordings == 1
    assert tier.plan.runs > 80
    assert kernels.appended >= 160
    assert not kernels.lengths
    assert exact.graphed.usage.inexact_segments == 0


def test_exact_caches_of_a_run_that_is_repeated_are_as_they_were(exact):
    start(exact)
    site = decode_exactly(exact, 6)
    caches = ((15, 3, 0), (15, 4, 0))
    for first in (100, 200):
        decode_exactly(exact, 3, first, site, caches)
        exact.same((15, 3, 0), (15, 4, 0))
    exact.same((102, 3, 0), (102, 4, 0), (202, 3, 0))


def test_a_cache_that_may_be_written_before_it_grows_does_so_outside_of_graphs(exact, kernels):
    nodes = (STEP[0], Node("aten.mul_.Tensor", (Slot(1), Ref(0))), Node("aten.mul.Tensor", (Ref(0), Ref(0))))
    start(exact)
    decode_exactly(exact, 12, nodes=(*nodes, grow(2, Ref(2)), grow(3, Ref(2)), *STEP[5:]))
    assert not kernels.appended


def test_without_room_to_append_caches_grow_outside_of_graphs_which_go_on(exact, kernels):
    start(exact)
    site = decode_exactly(exact, 8)
    (tier,) = exact.graphed.tiers.all()
    for cats in tier.watched.appending.values():
        for cat in cats:
            cat.grow.copied_out = 1000
    appended = kernels.appended
    decode_exactly(exact, 20, 100, site)
    assert kernels.appended == appended
    assert tier.plan.runs > 10


def test_kernels_that_cannot_be_compiled_leave_graphs_of_pytorchs(exact, kernels):
    known = exact.graphed.tiers.kernels
    known.broken = lambda needs: bool(needs)
    start(exact)
    decode_exactly(exact, 12)
    (tier,) = exact.graphed.tiers.all()
    assert not kernels.appended
    assert tier.plan.runs > 5


def test_a_weight_that_changes_its_place_and_a_failure_leave_caches_right(exact):
    start(exact)
    site = decode_exactly(exact, 6)
    keys, values = (15, 3, 0), (15, 4, 0)
    exact.put(90, torch.rand(1, H, 1, D))
    exact.run(50, site, [(15, 8, 0), (90, 0, 0), keys, values], (8, 0, 3, 0, 4, 0), holes=[2, 2, 0.1])
    exact.same((50, 8, 0), (50, 3, 0), (50, 4, 0))
    exact.put(91, torch.rand(1, H, 1, D + 1))
    slots = [(91, 0, 0), (1, 0, 0), keys, values]
    failed = exact.run(51, site, slots, (8, 0, 3, 0, 4, 0), holes=[2, 2, 0.1])
    assert failed.row == 0
    exact.tell(Recover(failed.failure))
    decode_exactly(exact, 4, 100, site, ((50, 3, 0), (50, 4, 0)))


def test_rows_that_append_stand_before_all_that_may_write_and_append_what_is_made_here():
    new = Node("aten.neg.default", (Slot(9),))
    nodes = Template(
        (new, grow(0, Ref(0)), grow(1, Slot(2)), Node("aten.mul_.Tensor", (Slot(0), Ref(0))), grow(1, Ref(0)))
    )
    assert appends(nodes, growing={1, 2, 4}, fences={3}) == {1}
    assert appends(nodes, growing={1, 2, 4}, fences=()) == {1, 4}


def test_attention_with_a_mask_dropout_or_other_readers_of_its_cache_stays_outside():
    new = Node("aten.neg.default", (Slot(9),))

    def after(attention, *more):
        nodes = (new, grow(0, Ref(0)), grow(1, Ref(0)), attention, *more)
        return attends(Template(nodes), appending={1, 2}, fences=set())

    def attention(*rest, **named):
        return Node(ATTENTION, (Slot(2), Ref(1), Ref(2), *rest), tuple(named.items()))

    assert after(attention()) == {3: Attend(3, 1, 2)}
    assert after(attention(Const(None), scale=Hole("float"))) == {3: Attend(3, 1, 2)}
    assert not after(attention(Slot(3)))
    assert not after(attention(Const(None), Hole("float")))
    assert not after(attention(is_causal=Const(True)))
    assert not after(attention(), Node("aten.neg.default", (Ref(1),)))


def test_a_table_tells_what_it_was_told_last_more_often_than_it_has_places():
    table = Table(2, 3, torch.device("cpu"))
    for run in range(PLACES * 2 + 3):
        table.tell(list(range(run, run + 6)))
        assert table.on_device.flatten().tolist() == list(range(run, run + 6))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("h", "group", "d", "length"), [(8, 4, 128, 577), (12, 1, 64, 63), (3, 2, 80, 4000), (1, 1, 16, 1)]
)
def test_kernels_of_a_gpu_append_and_attend(dtype, h, group, d, length):
    from remora.executor.worker.loose import apart, kernels_of

    device = torch.device("cuda:0")
    kernels = kernels_of(device)

    def some(*shape):
        return torch.randn(*shape, device=device).to(dtype)

    rows = length + 3
    caches = [torch.full((2, h, rows, d), float("nan"), dtype=dtype, device=device) for _ in range(2)]
    pasts = [some(2, h, length, d) for _ in range(2)]
    for cache, past in zip(caches, pasts, strict=True):
        cache[:, :, :length] = past
    query = some(2, 1, h * group, d).transpose(1, 2)
    new = [some(2, 1, h, d).transpose(1, 2) for _ in range(2)]
    table = torch.tensor([[0] * 4, *([cache.data_ptr(), rows, length, 0] for cache in caches)], device=device)
    made = kernels.attend(query, *new, table[1:], None)
    keys, values = (torch.cat(pair, dim=2) for pair in zip(pasts, new, strict=True))
    expected = scaled_dot_product_attention(query.float(), keys.float(), values.float(), enable_gqa=True)
    assert apart(made, expected.to(dtype)) <= 1
    for cache, whole in zip(caches, (keys, values), strict=True):
        assert torch.equal(cache[:, :, : length + 1], whole)
        assert cache[:, :, length + 1 :].isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (1024, 14336), (77, 100)])
def test_kernels_of_a_gpu_multiply_a_row(n, k):
    from remora.executor.worker.loose import apart, kernels_of

    x, weight = (torch.randn(*shape, device="cuda:0").bfloat16() for shape in ((1, 1, k), (n, k)))
    made = kernels_of(torch.device("cuda:0")).linear(x, weight)
    assert apart(made, torch.nn.functional.linear(x, weight)) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize(
    ("shape", "dim"), [((2, 8, 1, 128), 2), ((3, 1, 5, 7), 1), ((2, 70), 0), ((1, 3, 900, 2), 2)]
)
def test_kernels_of_a_gpu_append_every_bit_and_nothing_else(dtype, shape, dim):
    from remora.executor.worker.loose import kernels_of

    device = torch.device("cuda:0")
    new = torch.randint(0, 255, (*shape, dtype.itemsize), dtype=torch.uint8, device=device)
    new = new.view(dtype).squeeze(-1).transpose(0, 1).contiguous().transpose(0, 1)
    whole = [*shape]
    whole[dim] = length = shape[dim] + 9
    cache = torch.zeros(*whole, dtype=dtype, device=device)
    row = torch.tensor([cache.data_ptr(), length, 4, 0], device=device)
    kernels_of(device).append(new, row, dim)
    expected = torch.zeros_like(cache)
    expected.narrow(dim, 4, shape[dim]).copy_(new)
    assert torch.equal(cache.view(torch.uint8), expected.view(torch.uint8))
