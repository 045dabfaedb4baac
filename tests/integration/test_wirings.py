"""Segments that run as they did before: nothing is decided about them again, and nothing else is different."""

from __future__ import annotations

import gc
import os
import random
from typing import ClassVar

import pytest
import torch
from random_programs import Program
from test_random_programs import check

import remora
from remora.bench import models, networks
from remora.config import ClientSettings
from remora.device.tensor import RemoraTensor
from remora.plan.policies.policy import Policy, Wish
from remora.session import placement
from remora.session.connect import current, open_pool
from remora.session.placement import Placement
from remora.transport.http import HttpTransport

PROGRAMS = 40


@pytest.fixture
def again(monkeypatch):
    """Segments that ran as before; plans settle with their first run."""
    found = []
    write_again = Placement._write_again

    def counted(self, segment, *rest):
        found.append(segment.number)
        write_again(self, segment, *rest)

    monkeypatch.setattr(Placement, "_write_again", counted)
    monkeypatch.setattr(placement, "SETTLED", 0)
    return found


class There(Policy):
    """All on one executor, which the test says."""

    name: ClassVar[str] = "there"
    executor = 0

    def place(self, graph, situation, costs):
        return Wish((self.executor,) * len(graph.rows), "all there", "as the test wants it")


@pytest.fixture
def connected(executors):
    def connect(policy: Policy | None = None) -> None:
        if policy is None:
            remora.connect(executors, placement="data_aware")
        else:
            open_pool([HttpTransport(url, None) for url in executors], ClientSettings(), policy)

    yield connect
    remora.disconnect()


def nothing_is_left() -> None:
    gc.collect()
    torch.remora.synchronize()
    current().idle()
    holdings = current().placement.holdings
    held = living()
    assert holdings.places.keys() == held.keys()
    if held:  # a backward pass that made a graph of its own: PyTorch itself never lets go of what it leads to
        storages = {place.storage.number: place.storage for place in holdings.places.values()}
        assert sum(holdings.held_nbytes) == sum(storage.nbytes for storage in storages.values())
        return
    assert (holdings.places, holdings.batches, holdings.held_nbytes) == ({}, {}, [0, 0])


def living() -> dict[tuple[int, int], torch.Tensor]:
    """The session's tensors that something still refers to, by the names of their values."""
    values = [(t._value, t) for t in gc.get_objects() if type(t) is RemoraTensor]
    here = current().recorder
    return {(value.segment, value.code): t for value, t in values if value.home is here}


def test_random_programs_run_twice(connected, again, record_property):
    seed = int(os.environ.get("RANDOM_PROGRAMS_SEED") or random.SystemRandom().randrange(10**9))
    record_property("RANDOM_PROGRAMS_SEED", seed)
    connected()
    for number in range(PROGRAMS):
        for _ in range(3):
            check(Program(seed * 1000 + number))
    assert again
    nothing_is_left()


def test_a_cache_that_grows_plans_nothing_and_is_freed(connected, again):
    def tokens(model, prompt):
        return model.generate(prompt, max_new_tokens=40, do_sample=False).cpu()

    model, prompt = models.llama(3, vocabulary=128), models.prompt(4) % 128
    expected = tokens(model, prompt)
    connected()
    model, prompt = model.to("remora"), prompt.to("remora")
    for _ in range(2):  # the second one finds the weights where they are
        assert torch.equal(tokens(model, prompt), expected)
    before, ran = remora.stats(), len(again)
    assert torch.equal(tokens(model, prompt), expected)
    spent = remora.stats() - before
    assert spent.plans == 0
    assert len(again) - ran > spent.segments / 2
    del model, prompt
    nothing_is_left()


def test_losses_of_repeated_steps(connected, again):
    def losses(device):
        torch.manual_seed(0)
        net = networks.mlp(16, 32, 4).to(device)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        x, y = torch.randn(8, 16).to(device), torch.randint(0, 4, (8,)).to(device)
        found = []
        for _ in range(8):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    expected = losses("cpu")
    connected()
    assert losses("remora") == expected
    assert again
    nothing_is_left()


def test_values_that_were_made_together_are_viewed_written_and_moved_apart(connected, again):
    policy = There()
    connected(policy)
    x = torch.arange(6.0, device="remora")
    holdings = current().placement.holdings
    for _ in range(10):  # now and then all values are told apart, for explain()
        made = [x + 1, x * 2, x - 3]
        made[2].sum().item()
        if holdings.batches:
            break
    assert holdings.batches
    assert again
    policy.executor = 1  # warm templates stay where they were planned, new ones go there
    view = made[1].view(2, 3)
    made[1].mul_(10)
    assert view.tolist() == [[0, 20, 40], [60, 80, 100]]
    assert (made[0] + view.flatten()).tolist() == [1, 22, 43, 64, 85, 106]
    assert holdings.held_nbytes[1] > 0
    for turn in range(3):  # what has moved does not run as before
        assert (x + turn).sum().item() == 15 + 6 * turn
    assert made[2].tolist() == [-3, -2, -1, 0, 1, 2]
    del x, made, view
    nothing_is_left()


def test_another_dropout_rate_is_another_wiring(connected, again):
    connected()
    x = torch.ones(64, device="remora")
    for p in (0.0, 0.0, 0.0, 0.5, 0.0, 0.5):
        torch.manual_seed(3)
        kept = (torch.nn.functional.dropout(x, p) * 1).count_nonzero().item()
        assert (kept == 64) is (p == 0.0)
    assert again
