"""Time, processor time, wire bytes and waits of a decode step: a model on an executor against the same locally."""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import remora
from remora.bench import models
from remora.bench.generation import SETTLED, Call, Collect, Traffic, timed, traffic
from remora.bench.harness import Impossible, Report, interleave

PROMPT_TOKENS = 16
TRAFFIC_TOKENS = 24
THIN, LLAMA, GPT2 = "GPT-2 of 12 thin layers", "Llama of 32 thin layers", "GPT-2 124M"
WARM_S, WARM_CALLS = 120.0, 10
CPU_RATIO = 2.2  # of local processor time, where that is more than the milliseconds of the bar
CPU_MS = {THIN: 10.0, LLAMA: 22.0}


@dataclass(frozen=True)
class Pair:
    """One model twice, with how much of it is generated."""

    name: str
    local: Any
    remote: Any
    vocabulary: int
    tokens: int
    trials: int


def pair(name: str, local: Any, vocabulary: int, tokens: int, trials: int) -> Pair:
    return Pair(name, local, copy.deepcopy(local).to("remora"), vocabulary, tokens, trials)


def measure(report: Report, quick: bool, rng: random.Random, gpt2_model: Any) -> None:
    """The bars on times, waits and bytes of thin models and of GPT-2 124M."""
    thin = pair(THIN, models.gpt2(12, 48, 12, 256), 256, *((24, 5) if quick else (64, 11)))
    calls = _compare(report, thin, rng)
    _speed_bar(report, THIN, calls, 3.0)
    _cpu_bar(report, THIN, calls)
    found = [_traffic(report, thin), _traffic(report, thin, Collect())]

    llama = pair(LLAMA, models.llama(32, vocabulary=256), 256, *((12, 3) if quick else (32, 5)))
    _cpu_bar(report, LLAMA, _compare(report, llama, rng))
    found += [_traffic(report, llama), _traffic(report, llama, Collect())]

    gpt2 = pair(GPT2, gpt2_model, 50257, *((12, 3) if quick else (32, 7)))
    _speed_bar(report, GPT2, _compare(report, gpt2, rng), 1.15)
    if not quick:
        found += [_traffic(report, gpt2), _traffic(report, gpt2, Collect())]
    _traffic_bars(report, plain=found[0::2], streamed=found[1::2])


def _compare(report: Report, pair: Pair, rng: random.Random) -> dict[str, list[Call]]:
    """Trials of both arms, local tokens against remote in each."""
    report.say(f"{pair.name}: {pair.trials} trials of {pair.tokens} tokens, each way")
    ids = models.prompt(PROMPT_TOKENS, vocabulary=pair.vocabulary)
    remote_ids = ids.to("remora")
    arms = {
        "local": lambda: timed(pair.local, ids, pair.tokens),
        "remote": lambda: timed(pair.remote, remote_ids, pair.tokens),
    }
    for arm in arms.values():
        arm()  # warm-up: templates are defined, caches filled
    report.row(f"{pair.name}: until calls are captured as a whole", "remote", "s", [_warm(arms["remote"])])
    calls = interleave(arms, pair.trials, rng)
    expected = calls["local"][0].tokens
    if not all(call.tokens.equal(expected) for trials in calls.values() for call in trials):
        raise Impossible(f"{pair.name}: tokens differ, so the times compare different work")
    for arm, trials in calls.items():
        report.row(f"{pair.name}: per token", arm, "ms", [call.ms_per_token for call in trials])
        report.row(f"{pair.name}: steady step", arm, "ms", [call.steady_ms for call in trials])
        report.row(f"{pair.name}: client CPU per token", arm, "ms", [call.steady_cpu_ms for call in trials])
    return calls


def _warm(call: Callable[[], Call]) -> float:
    """Seconds until the fast routes are in.

    Raises:
        Impossible: they did not come, so that another route would be measured than the one that is said.
    """
    started = time.perf_counter()
    for _ in range(WARM_CALLS):
        if not remora.wait_warm(WARM_S):
            raise Impossible(f"calls were still being traced after {WARM_S:g} s")
        before = remora.stats()
        made = call().tokens.shape[1] - PROMPT_TOKENS
        if (remora.stats() - before).whole_calls >= made - 1:  # all but the prefill
            return time.perf_counter() - started
    raise Impossible(f"after {WARM_CALLS} generates their steps were not captured as a whole")


def _speed_bar(report: Report, name: str, calls: dict[str, list[Call]], bar: float) -> None:
    medians = {arm: statistics.median(call.ms_per_token for call in trials) for arm, trials in calls.items()}
    report.bar(f"{name}: ms per token, remote / local", medians["remote"] / medians["local"], "<=", bar)


def _cpu_bar(report: Report, name: str, calls: dict[str, list[Call]]) -> None:
    """The bar is so many milliseconds, or so many times the local arm: whichever is more."""
    medians = {arm: statistics.median(call.steady_cpu_ms for call in trials) for arm, trials in calls.items()}
    report.row(f"{name}: client CPU per token", "remote / local", "x", [medians["remote"] / medians["local"]])
    bar = max(CPU_MS[name], CPU_RATIO * medians["local"])
    report.bar(f"{name}: client CPU ms per token", medians["remote"], "<=", bar)


def _traffic(report: Report, pair: Pair, streamer: Collect | None = None) -> Traffic:
    ids = models.prompt(PROMPT_TOKENS, vocabulary=pair.vocabulary).to("remora")
    options = {"streamer": streamer} if streamer else {}
    traffic(pair.remote, ids, SETTLED + 2, **options)  # warm-up
    found = traffic(pair.remote, ids, TRAFFIC_TOKENS, **options)
    arm = "remote, streamer" if streamer else "remote"
    report.row(f"{pair.name}: bytes per steady token", arm, "B", found.steps)
    report.row(f"{pair.name}: bytes per token of the whole call", arm, "B", [found.whole])
    report.row(f"{pair.name}: blocked per token", arm, "times", [found.round_trips])
    report.row(f"{pair.name}: blocked before prefill", arm, "times", [found.before_prefill])
    return found


def _traffic_bars(report: Report, plain: list[Traffic], streamed: list[Traffic]) -> None:
    """The worst of the models counts; bytes are the mean of the steady tokens."""
    nbytes = max(statistics.mean(found.steps) for found in plain)
    report.bar("wire bytes per steady greedy token", nbytes, "<=", 400)
    report.bar("times blocked per token", max(found.round_trips for found in plain), "<=", 1)
    report.bar("times blocked before prefill", max(found.before_prefill for found in plain), "<=", 1)
    report.bar("times blocked per token, streamer", max(found.round_trips for found in streamed), "<=", 2)
    before = max(found.before_prefill for found in streamed)
    report.bar("times blocked before prefill, streamer", before, "<=", 2)
