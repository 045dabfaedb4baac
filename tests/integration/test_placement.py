"""Sessions over several executors: what a program computes does not depend on where its rows run."""

from __future__ import annotations

import gc
import os
import random
import weakref
from contextlib import suppress
from typing import ClassVar

import pytest
import torch
from executor_process import executor_process
from random_programs import Program, run_line
from test_random_programs import check

import remora
from remora.bench import models, networks
from remora.config import ClientSettings
from remora.device.sink import bound
from remora.errors import ExecutorError, PlanError, SessionLost, UsageError
from remora.plan.policies import POLICIES
from remora.plan.policies.policy import Policy, Wish
from remora.session.connect import current, open_pool
from remora.transport.http import HttpTransport

PROGRAMS = 60


@pytest.fixture(scope="module")
def executors(executor, second, third):
    return [executor.url, second.url, third.url]


@pytest.fixture
def pool(executors):
    """Connects to some of the executors."""

    def connect(placement: str, n: int = 2) -> None:
        remora.connect(executors[:n], placement=placement)

    yield connect
    remora.disconnect()


class Scatter(Policy):
    """Each row anywhere: no plan is worse, and none has more bonds to keep."""

    name: ClassVar[str] = "scatter"

    def place(self, graph, situation, costs):
        rng = random.Random(len(graph.rows) * 31 + len(graph.slots))
        executors = tuple(rng.randrange(situation.n_executors) for _ in graph.rows)
        return Wish(executors, "anywhere", "drawn row by row")


def is_kept(program):
    """Whether PyTorch on the CPU never frees a tensor of it: some backward passes that fail leave a circle behind."""
    env = program.environment("cpu")
    with suppress(Exception):
        for line in program.lines:
            run_line(line, env)
    tensors = [weakref.ref(item) for item in env.values() if isinstance(item, torch.Tensor)]
    env.clear()
    gc.collect()
    return any(tensor() is not None for tensor in tensors)


@pytest.mark.parametrize("n", [2, 3])
def test_random_programs_with_rows_anywhere(executors, record_property, n):
    seed = int(os.environ.get("RANDOM_PROGRAMS_SEED") or random.SystemRandom().randrange(10**9))
    record_property("RANDOM_PROGRAMS_SEED", seed)
    transports = [HttpTransport(url, None) for url in executors[:n]]
    open_pool(transports, ClientSettings(), Scatter())
    try:
        before = remora.stats()
        programs = [Program(seed * 1000 + number) for number in range(PROGRAMS)]
        for program in programs:
            if not is_kept(program):
                check(program)
        assert (remora.stats() - before).peer_bytes > 0
        gc.collect()
        torch.remora.synchronize()
        current().idle()
        holdings = current().placement.holdings
        assert (holdings.places, holdings.held_nbytes) == ({}, [0] * n)
    finally:
        remora.disconnect()


MODES = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3, "do_sample": False},
    "static cache": {"do_sample": False, "cache_implementation": "static", "disable_compile": True},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("placement", POLICIES)
def test_tokens_are_those_of_local(pool, placement, mode):
    def tokens(device):
        torch.manual_seed(5)
        model = models.gpt2(layers=2, width=48, vocabulary=128).eval().to(device)
        torch.manual_seed(6)
        return model.generate(models.prompt(12).to(device) % 128, max_new_tokens=6, **MODES[mode]).cpu()

    expected = tokens("cpu")
    pool(placement)
    assert torch.equal(tokens("remora"), expected)
    again = remora.stats()
    assert torch.equal(tokens("remora"), expected)
    moved = (remora.stats() - again).peer_bytes
    assert moved == 0 if placement in ("local", "data_aware", "semantic") else moved >= 0


@pytest.mark.parametrize("placement", POLICIES)
def test_losses_are_those_of_local(pool, placement):
    def losses(device):
        torch.manual_seed(0)
        net = networks.mlp(16, 32, 4).to(device)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        x, y = torch.randn(8, 16).to(device), torch.randint(0, 4, (8,)).to(device)
        found = []
        torch.manual_seed(1)  # the device's generator from its start, as the CPU's
        for _ in range(4):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(torch.nn.functional.dropout(net(x), 0.1), y)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    expected = losses("cpu")
    pool(placement)
    assert losses("remora") == expected


def test_blind_turns_once_a_program_and_the_state_travels(pool):
    pool("blind")
    state = torch.zeros(1000, device="remora")
    state.add_(1).sum().item()
    before = remora.stats()
    for turn in range(5):  # the last push may be answered later than the value that it brought
        assert state.add_(1).sum().item() == 1000 * (turn + 2)
    assert (remora.stats() - before).peer_bytes >= 4 * state.nbytes


def test_plans_are_made_once(pool):
    pool("data_aware")
    x = torch.ones(64, 64, device="remora")
    for _ in range(3):
        x = torch.tanh(x @ x)
        x.sum().item()
    before = remora.stats()
    for _ in range(5):
        x = torch.tanh(x @ x)
        x.sum().item()
    assert (remora.stats() - before).plans == 0


def test_a_row_that_fails_names_its_line_and_the_session_goes_on(pool):
    pool("blind")
    table, held = torch.ones(4, 8, device="remora"), torch.arange(3, device="remora")
    table.sum().item()
    bad = torch.nn.functional.embedding(held + 3, table)
    with pytest.raises((IndexError, ExecutorError), match=r"test_placement\.py"):
        (bad * 2).sum().item()
    assert table.sum().item() == 32
    assert (held + 1).tolist() == [1, 2, 3]


def test_an_executor_that_dies_is_named(executors):
    with executor_process("--memory", "2GiB") as mortal:
        remora.connect([executors[0], mortal.url], placement="blind")
        try:
            x = torch.ones(8, device="remora")
            x.sum().item()
            x.sum().item()
            mortal.process.kill()
            mortal.process.wait()
            turns = (x.add_(1).sum().item() for _ in range(4))
            with pytest.raises(SessionLost, match=mortal.url):
                list(turns)
        finally:
            remora.disconnect()


class Second(Policy):
    """All on the second executor."""

    name: ClassVar[str] = "second"

    def place(self, graph, situation, costs):
        return Wish((1,) * len(graph.rows), "all on executor 1", "as the test wants it")


def test_random_numbers_are_drawn_where_the_first_ones_are_wished_until_all_is_seeded_anew(executors):
    torch.manual_seed(11)
    expected = [torch.rand(3), torch.randn(2)]
    state = torch.get_rng_state()
    expected.append(torch.rand(4))
    open_pool([HttpTransport(url, None) for url in executors[:2]], ClientSettings(), Second())
    try:
        placement = current().placement
        for _ in range(2):
            torch.manual_seed(11)
            assert placement.generators is None
            drawn = [torch.rand(3, device="remora"), torch.randn(2, device="remora")]
            saved = torch.remora.get_rng_state()
            drawn.append(torch.rand(4, device="remora"))
            assert all(torch.equal(a.cpu(), b) for a, b in zip(drawn, expected, strict=True))
            assert placement.generators == 1
            assert torch.equal(saved, state)
            torch.remora.set_rng_state(saved)
            assert torch.equal(torch.rand(4, device="remora").cpu(), expected[2])
        own = torch.Generator("remora").manual_seed(5)
        again = torch.rand(3, device="remora", generator=own)
        assert torch.equal(again.cpu(), torch.rand(3, generator=torch.Generator().manual_seed(5)))
        torch.manual_seed(11)
        assert torch.equal(torch.rand(3, device="remora").cpu(), expected[0])
        assert remora.stats().peer_bytes == 0
    finally:
        remora.disconnect()


class Apart(Policy):
    """Weights of the second layer, and what reads them, on the second executor."""

    name: ClassVar[str] = "apart"

    def place(self, graph, situation, costs):
        executors = tuple(int(row.module.startswith("Sequential.1 ")) for row in graph.rows)
        return Wish(executors, "by layer", "as the test wants it")


def test_the_error_about_a_dead_executor_names_what_only_it_had(executors):
    with executor_process("--memory", "2GiB") as mortal:
        transports = [HttpTransport(url, None) for url in (executors[0], mortal.url)]
        open_pool(transports, ClientSettings(), Apart())
        try:
            net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)).to("remora")
            x = torch.ones(2, 8, device="remora")
            net(x).sum().item()
            mortal.process.kill()
            mortal.process.wait()
            turns = (net(x).sum().item() for _ in range(4))
            with pytest.raises(SessionLost, match=mortal.url) as lost:
                list(turns)
            assert "among them weights of Sequential (1.weight, 1.bias)" in str(lost.value)
        finally:
            remora.disconnect()


class InTurn(Policy):
    """Each row on the other executor than the one before, so everything made is renamed."""

    name: ClassVar[str] = "in turn"

    def place(self, graph, situation, costs):
        executors = tuple(row % 2 for row in range(len(graph.rows)))
        return Wish(executors, "in turn", "as the test wants it")


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_memory_is_known_by_what_it_was_first_called(executors):
    open_pool([HttpTransport(url, None) for url in executors[:2]], ClientSettings(), InTurn())
    try:
        other = torch.arange(3, device="remora").neg()
        x = torch.arange(3.0, device="remora")
        view = x[:1]
        x.resize_(2, 3)
        address, nbytes = x.untyped_storage()._cdata, x.untyped_storage().nbytes()
        y = x.detach()
        y.data = other
        assert nbytes == 24
        assert (x * 2).tolist()[0] == [0, 2, 4]
        assert x._value.born is not None
        for same in (x, view):
            assert same.untyped_storage().nbytes() == nbytes
            assert same.untyped_storage()._cdata == address
        assert y.untyped_storage()._cdata == other.untyped_storage()._cdata
        assert len(x.untyped_storage().cpu()) == nbytes
    finally:
        remora.disconnect()


class Wrong(Policy):
    """Breaks rules once it is told to."""

    name: ClassVar[str] = "wrong"
    executor = 0

    def place(self, graph, situation, costs):
        return Wish((self.executor,) * len(graph.rows), "anywhere", "as the test wants it")


@pytest.mark.parametrize("wrong", [2, -1])
def test_a_plan_that_breaks_a_rule_raises_at_planning_and_never_runs(executors, wrong):
    policy = Wrong()
    open_pool([HttpTransport(url, None) for url in executors[:2]], ClientSettings(), policy)
    try:
        x = torch.ones(4, device="remora")
        assert x.sum().item() == 4
        policy.executor = wrong
        with pytest.raises(PlanError, match=r"row 0 \(aten\.mul\.Tensor\)|row 0 is nowhere"):
            (x * 3).sum().item()
        policy.executor = 1
        assert (x * 5).sum().item() == 20
        assert x.tolist() == [1, 1, 1, 1]
    finally:
        remora.disconnect()


def test_wrong_pools_are_refused(executors):
    with pytest.raises(UsageError, match="more than once"):
        remora.connect([executors[0], executors[0]])
    with pytest.raises(UsageError, match="data_aware"):
        remora.connect(executors, placement="best")
    assert bound.recorder is None
