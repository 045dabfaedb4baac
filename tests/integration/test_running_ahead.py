"""Run-ahead with real executors: what a program sees is what it sees without, and nothing is left behind."""

from __future__ import annotations

import time
from contextlib import closing

import pytest
import torch
from executor_process import Proxy

import remora
from remora.bench import models
from remora.transport.http import HttpTransport
from remora.wire.limits import OLDEST_PROTOCOL, PROTOCOL
from remora.wire.messages import OpenSession

STEPS = 40
PAUSE_S = 0.003  # a program that does something else, too


@pytest.fixture(params=[True, False], ids=["on", "off"])
def run_ahead(executor, request):
    remora.connect(executor.url, run_ahead=request.param)
    yield request.param
    remora.disconnect()


def same(loop, *, speculates=True, run_ahead=True):
    """Runs a loop here and on the executor, and compares all that it returns; the counters of its run there."""
    torch.manual_seed(3)
    expected = loop("cpu")
    before = remora.stats()
    torch.manual_seed(3)
    assert loop("remora") == expected
    spent = remora.stats() - before
    if run_ahead and speculates:
        assert spent.confirmed >= STEPS // 8
    elif not run_ahead or not speculates:
        assert spent.confirmed == 0
    return spent


def test_a_loop_with_state_in_place(run_ahead):
    def loop(device):
        x, seen = torch.zeros(4, device=device), []
        for _ in range(STEPS):
            time.sleep(PAUSE_S)
            x.add_(1.5)
            x[1:3].mul_(0.5)
            seen.append(x.sum().item())
        return seen, x.tolist()

    same(loop, run_ahead=run_ahead)


def test_what_was_done_too_much_in_place_is_undone(run_ahead):
    """The loop ends without a word: what ran ahead of its end shows nowhere."""

    def loop(device):
        torch.manual_seed(5)
        cache, x, seen = torch.zeros(STEPS + 80, device=device), torch.ones(3, device=device), []
        at = torch.zeros(1, dtype=torch.long, device=device)
        for _ in range(STEPS):
            time.sleep(PAUSE_S)
            x.add_(torch.rand(3, device=device))
            cache.index_copy_(0, at, x[:1])
            at.add_(1)
            seen.append((x > 1e9).any().item())
        time.sleep(0.1)  # so that something has run too much
        return seen, x.tolist(), at.tolist(), cache.tolist(), torch.rand(2, device=device).tolist()

    def on_cpu_numbers(device):  # the executor's generator is a CPU one here
        return loop(device)

    spent = same(on_cpu_numbers, run_ahead=run_ahead)
    if run_ahead:
        assert spent.wasted > 0


def test_a_branch_that_is_taken_once(run_ahead):
    def loop(device):
        x, seen = torch.zeros(3, device=device), []
        for _ in range(2 * STEPS):
            time.sleep(PAUSE_S)
            x += 1
            if (x[0] == STEPS).item():
                x *= 2
                seen.append(x.tolist())
        return seen, x.tolist()

    same(loop, run_ahead=run_ahead)


def test_a_number_of_the_program_that_changes_by_a_fixed_step(run_ahead):
    def loop(device):
        x, seen = torch.zeros(2, device=device), []
        for at in range(STEPS):
            time.sleep(PAUSE_S)
            x = x * 0.5 + at
            seen.append(x.sum().item())
        return seen

    same(loop, run_ahead=run_ahead)


def test_random_control_flow_is_not_predicted(run_ahead):
    import random

    def loop(device):
        rng = random.Random(4)
        x, seen = torch.ones(2, device=device), []
        for _ in range(STEPS):
            time.sleep(PAUSE_S)
            x = x * rng.random() if rng.random() < 0.5 else x + rng.randint(0, 1 << 20)
            seen.append(x.sum().item())
        return seen

    same(loop, speculates=False, run_ahead=run_ahead)


def test_large_answers_come_when_they_are_asked_for(run_ahead):
    def loop(device):
        x, seen = torch.arange(40_000.0, device=device), []
        for _ in range(STEPS):
            time.sleep(PAUSE_S)
            x.mul_(1.0001)
            seen.append(x.cpu().sum().item())
        return seen

    before = remora.stats()
    torch.manual_seed(3)
    expected = loop("cpu")
    assert loop("remora") == expected
    assert (remora.stats() - before).confirmed == 0  # none came early


def test_an_error_that_only_the_coming_steps_have_is_raised_by_the_step_that_has_it(run_ahead):
    def loop(device):
        table, at, seen = (
            torch.arange(10.0, device=device),
            torch.zeros(1, dtype=torch.long, device=device),
            [],
        )
        try:
            for _ in range(20):
                seen.append(table.index_select(0, at).sum().item())
                at += 1
        except (IndexError, RuntimeError) as error:
            seen.append("out of range" in str(error))
        return seen, at.tolist()

    expected = loop("cpu")
    assert loop("remora") == expected


def test_training_is_neither_predicted_wrongly_nor_changed(run_ahead):
    def loop(device):
        torch.manual_seed(2)
        model = torch.nn.Linear(4, 2).to(device)
        steps = torch.optim.AdamW(model.parameters(), lr=0.01)
        data, seen = torch.randn(8, 4).to(device), []
        for _ in range(12):
            steps.zero_grad()
            loss = model(data).square().mean()
            loss.backward()
            steps.step()
            seen.append(loss.item())
        return seen

    before = remora.stats()
    expected = loop("cpu")
    assert loop("remora") == expected
    assert (remora.stats() - before).wasted == 0


def test_a_pool_runs_ahead_as_one_executor_does(executors):
    """Times of plans, which it takes at every power of two, break no prediction; confirmations go together."""
    remora.connect(executors, placement="semantic")
    x = torch.zeros(4, device="remora")
    before = remora.stats()
    for step in range(STEPS):
        if step == STEPS // 4:
            before = remora.stats()
        time.sleep(PAUSE_S)
        for _ in range(3):
            x.add_(1.5)
            x[1:3].mul_(0.5)
        assert x.sum().isfinite().item()
    spent = remora.stats() - before
    remora.disconnect()
    assert spent.confirmed >= STEPS // 2
    assert not spent.wasted
    assert spent.bytes_sent < 20 * STEPS


@pytest.mark.filterwarnings("ignore")
def test_after_the_end_of_a_sentence_nothing_is_wasted(executor):
    remora.connect(executor.url)
    try:
        model = models.gpt2(layers=2, width=48, vocabulary=64).eval()
        ids = models.prompt(12) % 64
        tokens = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)
        eos = int(tokens[0, -3])
        kw = {"max_new_tokens": 400, "do_sample": False, "pad_token_id": 0, "eos_token_id": eos}
        expected = model.generate(ids, **kw)
        model.to("remora")
        model.generate(ids.to("remora"), **kw)
        before = remora.stats()
        assert torch.equal(model.generate(ids.to("remora"), **kw).cpu(), expected)
        spent = remora.stats() - before
        if expected.shape[1] - ids.shape[1] >= 8:
            assert spent.confirmed > 0
        assert spent.wasted == 0
    finally:
        remora.disconnect()


@pytest.mark.filterwarnings("ignore")
def test_a_cut_in_the_middle_loses_and_repeats_nothing(executor):
    proxy = Proxy(executor.port)
    remora.connect(proxy.url)
    try:
        x, seen = torch.zeros(4, device="remora"), []
        for at in range(STEPS):
            time.sleep(PAUSE_S)
            x.add_(1.0)
            seen.append(x.sum().item())
            if at in (10, 11, 25):
                proxy.cut()
        assert seen == [4.0 * (at + 1) for at in range(STEPS)]
        assert remora.stats().reconnects >= 2
        assert remora.stats().confirmed > 0
    finally:
        remora.disconnect()
        proxy.close()


def test_the_environment_turns_it_off(executor, monkeypatch):
    monkeypatch.setenv("REMORA_RUN_AHEAD", "0")
    remora.connect(executor.url)
    try:
        x = torch.zeros(2, device="remora")
        for _ in range(STEPS):
            time.sleep(PAUSE_S)
            x += 1
            x.sum().item()
        stats = remora.stats()
        assert (stats.speculated, stats.depth) == (0, 0)
    finally:
        remora.disconnect()


def test_large_answers_that_ran_ahead_are_undone_like_any_other(executor):
    remora.connect(executor.url)
    try:
        x, n = torch.arange(40_000.0, device="remora"), torch.zeros((), device="remora")
        for at in range(STEPS):
            time.sleep(PAUSE_S)
            n += 1
            assert (x + at).cpu()[1] == 1 + at
        assert n.item() == STEPS  # breaks the prediction
        assert torch.equal(x.cpu(), torch.arange(40_000.0))
    finally:
        remora.disconnect()


def test_a_loop_that_was_seen_runs_ahead_from_its_second_program_on(executor):
    remora.connect(executor.url)
    try:

        def once():
            before, x = remora.stats(), torch.zeros(3, device="remora")
            for at in range(STEPS):
                time.sleep(PAUSE_S)
                x = x / 0.5 if at == STEPS // 2 else x + 1
                assert (x.sum() >= 0).item()
            return x.tolist(), remora.stats() - before

        for _ in range(3):
            result, spent = once()
            assert result == [2.0 * (STEPS // 2) + STEPS // 2 - 1] * 3
        assert spent.confirmed >= STEPS - 8
    finally:
        remora.disconnect()


def test_a_client_whose_predictions_are_others_is_granted_none(executor):
    with closing(HttpTransport(executor.url)) as transport:
        for spoken, granted in (
            (OLDEST_PROTOCOL, OLDEST_PROTOCOL),
            (3, OLDEST_PROTOCOL),
            (PROTOCOL, PROTOCOL),
        ):
            grant = transport.open_session(OpenSession(spoken, 2, str(torch.__version__)), 2.0)
            transport.close_session(grant, 2.0)
            assert grant.protocol == granted
