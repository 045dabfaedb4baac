"""What fails on the executor: where it shows, what it says, and what is left afterwards."""

from __future__ import annotations

import inspect

import pytest
import torch

from remora.errors import ExecutorError, ExecutorIndexError, RemoraError


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(10, 4)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(self.words(ids))  # the user's line


LINE = inspect.getsourcelines(Net.forward)[1] + 1


@pytest.fixture
def net(connected):
    torch.manual_seed(0)
    return Net().to("remora")


@torch.no_grad()
def test_a_bad_index_surfaces_at_the_sync_with_its_whole_story(net):
    out = net(torch.tensor([[1, 99]], device="remora"))  # nothing is raised here
    with pytest.raises(IndexError) as caught:
        out.sum().item()
    text = str(caught.value)
    assert isinstance(caught.value, ExecutorIndexError)
    for part in ("index out of range", "aten.embedding.default", "int64[1, 2]", f"{__file__}:{LINE}"):
        assert part in text
    assert "Net.words (Embedding)" in text
    assert "http://127.0.0.1:" in text


@torch.no_grad()
def test_after_it_the_session_goes_on_and_what_came_before_is_intact(net):
    sent = torch.arange(4.0).to("remora") * 2
    sent.sum().item()
    before = sent + 1  # in the segment of the failure, ahead of it
    touched = torch.zeros(3, device="remora")
    bad = net(torch.tensor([12], device="remora"))
    touched.add_(1)  # recorded behind it: must not happen
    derived = bad * 2
    with pytest.raises(ExecutorIndexError):
        bad.sum().item()
    assert sent.tolist() == [0, 2, 4, 6]
    assert before.tolist() == [1, 3, 5, 7]
    assert touched.tolist() == [0, 0, 0]
    assert touched.add_(5).tolist() == [5, 5, 5]
    good = net(torch.tensor([3], device="remora"))
    assert good.shape == (1, 2)
    assert torch.isfinite(good).all().item()
    for lost in (bad, derived, derived + 1):
        with pytest.raises(
            ExecutorError, match=r"never computed.*aten\.embedding\.default: index out of range"
        ):
            lost.sum().item()


@torch.no_grad()
def test_a_lost_input_spoils_only_the_rows_from_it_on(net):
    bad = net(torch.tensor([12], device="remora"))
    with pytest.raises(ExecutorIndexError):
        bad.tolist()
    base = torch.ones(2, device="remora")
    fine = base * 7
    spoilt = bad + 1  # the same segment
    with pytest.raises(ExecutorError, match="never computed"):
        spoilt.tolist()
    assert fine.tolist() == [7, 7]


def test_a_failure_shows_at_any_kind_of_sync(net):
    for sync in (
        torch.remora.synchronize,
        lambda: torch.remora.get_rng_state().tolist(),
        lambda: torch.ones(9, device="remora").tolist(),
    ):
        with torch.no_grad():
            net(torch.tensor([50], device="remora"))
        with pytest.raises(ExecutorIndexError):
            sync()
        sync()


def test_shapes_that_do_not_fit_raise_at_once_with_pytorchs_own_words(connected):
    a, b = torch.ones(2, 3, device="remora"), torch.ones(4, 5, device="remora")
    with pytest.raises(
        RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(2x3 and 4x5\)"
    ) as caught:
        a @ b
    assert not isinstance(caught.value, RemoraError)
    assert (a @ a.T).tolist() == [[3, 3], [3, 3]]


def test_an_op_that_the_executor_refuses_is_named_and_the_rows_before_it_run(connected):
    from remora.ir.graph import Template
    from remora.ir.node import Const, Hole, Items, Node, Ref, Slot
    from remora.session.connect import current
    from remora.wire.messages import Define, Fetch, Put, Run, Site

    session = current()
    lane = session.lane
    nodes = (
        Node("aten.add.Tensor", (Slot(0), Slot(0))),
        Node("aten.from_file.default", (Const("/etc/passwd"), Const(False), Hole("int"))),
        Node("aten.cat.default", (Items((Ref(0), Ref(1))),)),
    )
    n, at = len(lane._defined), lane._sites.count
    segments = [session.recorder.number() for _ in range(2)]
    with session.recorder.lock:
        lane._outbox += [
            Put(segments[0], "float32", (1,), b"\0\0\x80\x3f"),
            Define(n, Template(nodes).body),
            Site(at, n),
            Run(segments[1], at, (0, 0, segments[0], 0, 0), (0, 4), (0, 0, 2, 0)),
        ]
        lane._defined[-1] = n
        lane._sites.count += 1
        with pytest.raises(
            NotImplementedError, match=r"aten\.from_file\.default is not allowed.*touches the host"
        ):
            session._ask(Fetch(next(session._tickets), (segments[1], 2, 0)))
        reply = session._ask(Fetch(next(session._tickets), (segments[1], 0, 0)))
    assert reply.values[0].data == b"\0\0\0\x40"
