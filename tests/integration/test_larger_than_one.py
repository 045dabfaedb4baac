"""A model that no executor holds: cut by layers over several, refused with the arithmetic where they are too few."""

from __future__ import annotations

import pytest
import torch
from executor_process import executor_process

import remora
from remora.bench import models
from remora.errors import PlanError
from remora.session import pinned
from remora.session.connect import current

SIZE = {"width": 256, "heads": 4, "kv_heads": 4, "inner": 688, "vocabulary": 1024}
LAYERS = 16
PROMPT = models.prompt(16, vocabulary=1024)


def make():
    torch.manual_seed(3)
    return models.llama(LAYERS, **SIZE).eval()


def nbytes(model) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def tokens(model, device: str) -> torch.Tensor:
    return model.to(device).generate(PROMPT.to(device), max_new_tokens=5, do_sample=False).cpu()


@pytest.fixture(scope="module")
def executors():
    cap = ("--memory", str(int(nbytes(make()) / 2.3)))
    with executor_process(*cap) as one, executor_process(*cap) as two, executor_process(*cap) as three:
        yield [one.url, two.url, three.url]


@pytest.fixture
def connected(executors):
    yield lambda n: remora.connect(executors[:n], placement="semantic")
    remora.disconnect()


@pytest.mark.parametrize("pinned_nbytes", [256 << 20, 1 << 20], ids=["used first", "uploaded first"])
def test_a_model_of_2_3_executors_runs_on_three(connected, monkeypatch, pinned_nbytes):
    monkeypatch.setattr(pinned, "PINNED_NBYTES", pinned_nbytes)
    expected = tokens(make(), "cpu")
    connected(3)
    model = make()
    assert torch.equal(tokens(model, "remora"), expected)
    before = remora.stats()
    assert torch.equal(tokens(model, "remora"), expected)
    spent = remora.stats() - before
    assert spent.weights_bytes == 0
    assert 0 < spent.peer_bytes < nbytes(model) / 10  # activations at the cuts, never weights
    session = current()
    held, limits = (
        session.placement.holdings.held_nbytes,
        [lane.grant.memory_nbytes for lane in session.lanes],
    )
    assert all(0 < used <= limit for used, limit in zip(held, limits, strict=True))


@pytest.mark.parametrize("pinned_nbytes", [256 << 20, 1 << 20], ids=["used first", "uploaded first"])
def test_a_pool_that_is_too_small_refuses_it_with_the_arithmetic(connected, monkeypatch, pinned_nbytes):
    monkeypatch.setattr(pinned, "PINNED_NBYTES", pinned_nbytes)
    connected(2)
    before = torch.arange(4, device="remora")
    assert before.sum().item() == 6
    model = make()
    with pytest.raises(PlanError, match=r"the pool is too small: .*\d+ missing.*add an executor"):
        tokens(model, "remora")
    assert (before + 1).tolist() == [1, 2, 3, 4]
    del model
    small = torch.nn.Linear(8, 8)
    x = torch.ones(2, 8)
    assert torch.equal(small.to("remora")(x.to("remora")).cpu(), small.to("cpu")(x))


def test_what_a_refused_segment_was_to_make_says_so_again(connected):
    connected(2)
    parts = [
        torch.full((1 << 22,), float(at)).to("remora") for at in range(5)
    ]  # 16 MiB each, on no executor yet
    whole = torch.cat(parts)
    for _ in range(2):
        with pytest.raises(PlanError, match="the pool is too small"):
            whole.sum().item()
    del whole
    assert [part.sum().item() for part in parts[:2]] == [0, 1 << 22]
