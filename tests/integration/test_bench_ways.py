"""Ways as processes behind real links: what a client of the run-ahead bench answers is what happened."""

from __future__ import annotations

import statistics

import pytest
from warm_python import TRANSFORMERS, run_program

from remora.bench.ceiling import round_trip_ms
from remora.bench.delay_proxy import delay_proxy
from remora.bench.echo import echo, round_trips_s


@pytest.mark.parametrize("rtt_ms", [10.0, 50.0])
def test_a_link_has_the_round_trip_that_it_was_given(rtt_ms: float) -> None:
    with echo() as port, delay_proxy("127.0.0.1", port, rtt_ms / 2e3) as through:
        found_ms = [seconds * 1e3 for seconds in round_trips_s(through, 11)]
    assert min(found_ms) >= rtt_ms
    assert statistics.median(found_ms) <= rtt_ms * 1.05 + 5.0  # of a machine that does other things too


def test_no_delay_is_no_proxy() -> None:
    assert round_trip_ms(0.0) < 5.0


def test_ways_make_the_tokens_of_local_and_wait_for_their_round_trip() -> None:
    """Without run-ahead: 12 tokens and the loop's 8 steps cannot be sooner than so many round trips."""
    done = run_program(
        """
import random, torch
torch.set_num_threads(1)
from remora.bench import models
from remora.bench.forks import ArmFailed, Fork
from remora.bench.links import Link, proxied
from remora.bench.modes import MODES, families
from remora.bench.ways import LOCAL, Client, Generated, Looped, Way
from remora.pool.embedded import EmbeddedExecutor

made = families() | {"thin": models.llama(4, vocabulary=256, spread=models.VARIED)}
ids = models.prompt(8, vocabulary=256).tolist()
executor = EmbeddedExecutor("--threads", "1")
far = Way(20.0)
try:
    with proxied(executor.start(), Link(0.0, 0.01)) as url:
        forks = [Fork("local", lambda: Client(LOCAL, None, made)), Fork("far", lambda: Client(far, url, made))]
        for fork in forks:
            fork.ask("open", 60)
            fork.ask("load", 60, model="thin")
        local, remote = (Generated(**fork.ask("generate", 60, model="thin", ids=ids, tokens=12)) for fork in forks)
        assert local.tokens == remote.tokens and len(set(local.tokens)) > 4, local.tokens
        assert remote.steady_ms >= 20 * 0.98 > 0 < local.steady_ms, remote
        assert remote.spent["round_trips"] >= 12 and remote.nbytes > 0 and local.spent.get("round_trips", 0) == 0
        early = [Generated(**fork.ask("generate", 60, model="thin", ids=ids, tokens=12, eos=local.tokens[4])).tokens
                 for fork in forks]
        assert early[0] == early[1] == local.tokens[:local.tokens.index(local.tokens[4]) + 1], early
        for do, rest in (("turning", {"turns": [3]}), ("wandering", {"seed": 4})):
            ours, theirs = (Looped(**fork.ask(do, 60, steps=8, **rest)) for fork in forks)
            assert ours.digest == theirs.digest, do
            assert theirs.ms >= 8 * 20 * 0.98, theirs
        first = [fork.ask("first", 60, model="thin", ids=ids) for fork in forks]
        assert first[0]["tokens"] == first[1]["tokens"] == local.tokens[:1]
        assert first[1]["ms"] >= 20 * 0.98
        ours, theirs = (fork.ask("mode", 60, family="Llama", mode="beam", tokens=6) for fork in forks)
        assert ours == theirs
        try:
            forks[1].ask("mode", 60, family="Llama", mode="no such", tokens=6)
        except ArmFailed as error:
            print(error)
        for fork in forks:
            fork.close()
finally:
    executor.stop()
""",
        modules=TRANSFORMERS,
        timeout_s=110,
    )
    assert done.stdout == "KeyError: 'no such'\n", done.stderr


def test_loops_on_an_executor_are_those_of_local(connected) -> None:
    import torch

    from remora.bench import loops

    for turns in ((), (9, 21)):
        assert torch.equal(loops.turning("remora", 30, turns).cpu(), loops.turning("cpu", 30, turns))
    assert torch.equal(loops.wandering("remora", 20, 3).cpu(), loops.wandering("cpu", 20, 3))
