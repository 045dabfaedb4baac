"""What only a GPU can show: that graphs are recorded and replayed, what they cost, and what a failure leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from graph_lane import Both
from remora.executor.hop import SessionTerms
from remora.executor.worker.graphs import recorder_of
from remora.executor.worker.kernels import kernel_of
from remora.executor.worker.session import WorkerSession
from remora.ir.node import Const, Hole, Items, Node, Ref, Slot, Symbol
from remora.ops.dtypes import bytes_of
from remora.ops.schema import resolve
from remora.wire.messages import DefaultDtype, Failed, Fetch, Put, Recover, Run
from worker_endpoint import worker_device

GPU = torch.device("cuda:0")
LIMIT_NBYTES = 4 << 30

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def session_on_gpu(graphs: bool) -> WorkerSession:
    device, sessions, _ = worker_device(LIMIT_NBYTES, GPU)
    if not graphs:
        device.recorder = None
    session = WorkerSession(1, SessionTerms("t/u", 0, LIMIT_NBYTES), device)
    sessions.append(session)
    return session


def layer(attention: bool = True) -> tuple[Node, ...]:
    """A decode layer: slots are the token, a weight, the keys so far."""
    product = Node("aten.mm.default", (Slot(0), Slot(1)))
    scaled = Node("aten.mul.Tensor", (Ref(0), Slot(0)))
    key = Node("aten.tanh.default", (Ref(1),))
    keys = Node("aten.cat.default", (Items((Slot(2), Ref(2))),))
    four = [Node("aten.view.default", (ref, Items((Hole("int"),) * 4))) for ref in (Ref(2), Ref(3))]
    attend = Node("aten.scaled_dot_product_attention.default", (Ref(4), Ref(5), Ref(5)))
    flat = Node("aten.view.default", (Ref(6), Items((Hole("int"),) * 2)))
    rest = [Node("aten.mm.default", (Ref(7), Slot(1))), Node("aten.add.Tensor", (Ref(8), Ref(1)))]
    last = Node("aten.layer_norm.default", (Ref(9), Items((Hole("int"),)), Const(None), Const(None)))
    return (product, scaled, key, keys, *four, attend, flat, *rest, last)


class Steps(Both):
    """The same steps in a session with graphs and in one without."""

    def __init__(self) -> None:
        self.sessions = [session_on_gpu(True), session_on_gpu(False)]

    def put(self, segment, tensor, dtype="float32"):
        self.tell(Put(segment, dtype, tuple(tensor.shape), bytes(bytes_of(tensor.contiguous()))))

    def run(self, segment, site, slots, keep, holes=(), wants=None):
        flat = tuple(n for at, name in enumerate(slots) for n in (at, 0, *name))
        numbers = tuple(n for pair in enumerate(holes) for n in pair)
        return self.tell(Run(segment, site, flat, numbers, keep, (), wants, segment if wants else None))


@pytest.fixture
def steps():
    torch.manual_seed(0)
    with torch.inference_mode():
        steps = Steps()
        yield steps
    for session in steps.sessions:
        session.close()


def decode(steps, n, site=None, first=10, dtype="bfloat16"):
    site = steps.program(*layer()) if site is None else site
    token, keys = (2, 0, 0), (3, 0, 0)
    length = 5
    for segment in range(first, first + n):
        length += 1
        holes = [1, 1, 1, 64, 1, 1, length, 64, 1, 64, 64]
        steps.run(segment, site, [token, (1, 0, 0), keys], (10, 0, 3, 0), holes, wants=(10, 0))
        token, keys = (segment, 10, 0), (segment, 3, 0)
    return site


def start(steps):
    steps.put(1, torch.randn(64, 64).to(torch.bfloat16), "bfloat16")
    steps.put(2, torch.randn(1, 64).to(torch.bfloat16), "bfloat16")
    steps.put(3, torch.randn(5, 64).to(torch.bfloat16), "bfloat16")


@needs_gpu
def test_decode_steps_are_replayed_with_the_same_bits(steps):
    start(steps)
    decode(steps, 40)
    tiers = steps.sessions[0].tiers
    (tier,) = tiers.all()
    assert tier.plan.runs >= 36
    assert sum(piece is not None for piece in tier.plan.pieces) == 2
    assert 0 < tiers.nbytes < 64 << 20
    steps.tell(Fetch(9, tuple(n for segment in range(10, 50) for n in (segment, 10, 0))))


# slots: x, weight, keys, values
ATTENDING = (
    Node("aten.mul.Tensor", (Slot(0), Slot(1))),
    Node("aten.tanh.default", (Ref(0),)),
    Node("aten.slice.Tensor", (Ref(1), Hole("int"), Hole("int"), Hole("int"), Hole("int"))),
    Node("aten.neg.default", (Ref(2),)),
    Node("aten.cat.default", (Items((Slot(2), Ref(2))), Hole("int"))),
    Node("aten.cat.default", (Items((Slot(3), Ref(3))), Hole("int"))),
    Node(
        "aten.scaled_dot_product_attention.default",
        (Ref(0), Ref(4), Ref(5)),
        (("enable_gqa", Const(True)),),
    ),
    Node("aten.add.Tensor", (Ref(6), Slot(1))),
    Node("aten.mul.Tensor", (Ref(7), Slot(0))),
    Node("aten.tanh.default", (Ref(8),)),
)


@needs_gpu
def test_caches_grow_in_graphs_by_the_same_bits(steps):
    for session in steps.sessions:
        if session.tiers is not None:
            session.tiers.kernels._compiling = False
    for name, shape in (
        (1, (1, 32, 1, 128)),
        (2, (1, 32, 1, 128)),
        (3, (1, 8, 160, 128)),
        (4, (1, 8, 160, 128)),
    ):
        steps.put(name, torch.randn(*shape).to(torch.bfloat16), "bfloat16")
    site = steps.program(*ATTENDING)
    last, keys, values = (2, 0, 0), (3, 0, 0), (4, 0, 0)
    for segment in range(10, 110):
        slots = [last, (1, 0, 0), keys, values]
        holes = [1, 0, 8, 1, 2, 2]
        steps.run(segment, site, slots, (9, 0, 4, 0, 5, 0), holes, wants=(9, 0))
        last, keys, values = (segment, 9, 0), (segment, 4, 0), (segment, 5, 0)
    steps.tell(Fetch(9, (*keys, *values)))
    (tier,) = steps.sessions[0].tiers.all()
    assert tier.plan.runs >= 95
    assert [len(stage.rows) for stage in tier.plan.stages if stage.piece] == [6, 3]


@needs_gpu
def test_a_row_that_waits_for_the_device_is_not_recorded(steps):
    nodes = [Node("aten.mul.Tensor", (Slot(0), Slot(0)))]
    nodes += [Node("aten.add.Tensor", (Ref(row), Slot(0))) for row in range(4)]
    nodes += [
        Node("aten.gt.Scalar", (Ref(4), Hole("float"))),
        Node("aten.index.Tensor", (Ref(4), Items((Ref(5),)))),
        Node("aten.sum.default", (Ref(6),)),
        Node("aten.isin.Tensor_Tensor", (Ref(4), Ref(3))),
    ]
    site = steps.program(*nodes)
    steps.put(1, torch.linspace(-1, 1, 1000))
    for segment in range(10, 20):
        steps.run(segment, site, [(1, 0, 0)], (7, 0, 8, 0), [0.0], wants=(7, 0, 8, 0))
    (tier,) = steps.sessions[0].tiers.all()
    assert tier.plan.runs >= 5
    assert 6 in tier.watched.outcasts


@needs_gpu
def test_random_rows_draw_as_ever_between_graphs_and_after_a_recording_that_failed(steps):
    nodes = [Node("aten.mul.Tensor", (Slot(0), Slot(0)))]
    nodes += [Node("aten.add.Tensor", (Ref(row), Slot(0))) for row in range(4)]
    nodes += [Node("aten.rand_like.default", (Ref(4),)), Node("aten.add.Tensor", (Ref(5), Ref(4)))]
    site = steps.program(*nodes)
    steps.put(1, torch.linspace(-1, 1, 1000))
    recorder = steps.sessions[0].device.recorder
    for segment in range(10, 20):
        # each session continues its own stream, so that they are told in full one after another
        replies = []
        for session in steps.sessions:
            replies.append(session.handle(Run(segment, site, (0, 0, 1, 0, 0), (), (6, 0), (), (6, 0), 1)))
        if segment == 14:
            with pytest.raises(RuntimeError):
                recorder.record(lambda: [torch.ones(4, device=GPU).nonzero()], recorder.pool())
    torch.rand(3, device=GPU)  # raises if the generator believes that a recording is under way
    assert all(not isinstance(reply, Failed) for reply in replies)


@needs_gpu
def test_settings_and_memory_pressure_drop_graphs_and_results_stay(steps):
    start(steps)
    site = decode(steps, 8)
    session = steps.sessions[0]
    steps.tell(DefaultDtype("float64"))
    assert session.tiers.nbytes == 0
    steps.tell(DefaultDtype("float32"))
    decode(steps, 8, site, first=100)
    assert session.tiers.nbytes > 0
    assert session.device.drop_graphs()
    assert session.tiers.nbytes == 0
    names = [(segment, 10, 0) for segment in (*range(10, 18), *range(100, 108))]
    steps.tell(Fetch(9, tuple(n for name in names for n in name)))
    used = [s.values.used_nbytes for s in steps.sessions]
    assert used[0] == used[1]
    decode(steps, 8, site, first=200)


@needs_gpu
def test_what_does_not_fit_fails_as_without_graphs(steps):
    start(steps)
    site = decode(steps, 8)
    large = steps.program(
        Node("aten.zeros.default", (Items((Hole("int"),)),), (("device", Symbol("device", "executor")),))
    )
    failed = steps.run(100, large, [], (0, 0), [1 << 40])
    assert isinstance(failed, Failed)
    assert failed.kind == "memory"
    steps.tell(Recover(failed.failure))
    decode(steps, 8, site, first=200)


@needs_gpu
def test_what_need_not_be_exact_makes_no_plan_for_attention_of_one_token():
    op = resolve("aten.scaled_dot_product_attention.default")
    node = Node("aten.scaled_dot_product_attention.default", (Slot(0), Slot(1), Slot(2)))
    call = kernel_of(op, node, exact=False)
    q = torch.randn(1, 8, 1, 64, device=GPU, dtype=torch.bfloat16)
    k = torch.randn(1, 8, 33, 64, device=GPU, dtype=torch.bfloat16)
    expected = torch.ops.aten._scaled_dot_product_flash_attention(q, k, k)[0]
    assert torch.equal(call(q, k, k), expected)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    many = torch.randn(1, 8, 33, 64, device=GPU, dtype=torch.bfloat16)
    assert torch.equal(call(many, k, k), torch.nn.functional.scaled_dot_product_attention(many, k, k))


def test_a_cpu_has_no_graphs():
    assert recorder_of(torch.device("cpu")) is None
