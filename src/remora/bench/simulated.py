"""`remora bench sim`: the simulator against the same programs measured, behind every round trip and rate.

Each program is recorded once, without a link in between, and its executors are measured once behind each link, as a
session does when it connects. From that the simulator says what a step takes behind the link; then it is measured.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from remora.bench import models
from remora.bench.calibration import perceptron
from remora.bench.harness import Options, Report
from remora.bench.links import GIGABIT, Link, proxied
from remora.bench.stretches import STRETCHES, Program, Step, timed
from remora.bench.workloads.workload import integers, normal
from remora.config import ClientSettings
from remora.errors import UsageError
from remora.plan.devices import Pool
from remora.pool.embedded import EmbeddedExecutor
from remora.session.calibration import calibrated
from remora.session.connect import wants
from remora.sim.scenario import Scenario, learned, simulated
from remora.transport.http import HttpTransport

SEED_RATE = 1e6 / 15e-3  # bytes a second: the seed's 15 ms a megabyte, 0.56 Gbit/s
RATES = {"unshaped": 0.0, "1 Gbit/s": GIGABIT, "0.56 Gbit/s": SEED_RATE}
RTTS_MS = (0.0, 10.0, 50.0)
CONTEXT, WIDTH = 128, 768  # of the seed's cache
MEDIAN_BAR, WORST_BAR = 0.10, 0.25


@dataclass(frozen=True)
class Case(Program):
    """quick: whether the quick form has it, too."""

    quick: bool = False


# -- the programs


class _Seed:
    """Attention of one token over a cache, and a small network; the output is the next token, [1, WIDTH]."""

    def __init__(self, arm: str) -> None:
        self.arm = arm
        self.cache_TW = normal(CONTEXT, WIDTH, seed=3)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH)
        ).to("remora")
        self.token_W = normal(1, WIDTH, seed=4)
        if arm != "blind":
            self.there_TW = self.cache_TW.to("remora")
        if arm == "resident":
            self.token_W = self.token_W.to("remora")

    @torch.no_grad()
    def step(self) -> None:
        token = self.token_W.to("remora")
        cache = self.cache_TW.to("remora") if self.arm == "blind" else self.there_TW
        weights = torch.softmax(token @ cache.T, -1)
        out = self.net(weights @ cache)
        if self.arm == "resident":
            self.token_W = out
            return
        self.token_W = out.cpu()
        if self.arm == "blind":
            self.cache_TW = cache.cpu()


class _Decode:
    def __init__(self, model: Any, vocabulary: int, prompt: int) -> None:
        from transformers import DynamicCache

        self.model = model.to("remora")
        self.cache: Any = DynamicCache(config=model.config)
        self.next_BT = integers(vocabulary, 1, prompt, seed=2).to("remora")

    @torch.no_grad()
    def step(self) -> None:
        out = self.model(self.next_BT, past_key_values=self.cache, use_cache=True)
        self.next_BT = out.logits[:, -1:].argmax(-1)
        self.next_BT.cpu()


def _thin() -> Step:
    return _Decode(models.gpt2(12, width=48, heads=4, vocabulary=512), 512, 16).step


def _gpt2() -> Step:
    return _Decode(models.gpt2(), 50257, 64).step


def _training() -> Step:
    torch.manual_seed(0)
    ((_, step),) = perceptron()
    return step


CASES = (
    Case("seed, blind", lambda: _Seed("blind").step, 30, 12, quick=True),
    Case("seed, aware", lambda: _Seed("aware").step, 60, 20, quick=True),
    Case("seed, resident", lambda: _Seed("resident").step, 100, 40),
    Case("thin GPT-2, decode", _thin, 60, 30, quick=True),
    Case("GPT-2 124M, decode", _gpt2, 30, 20),
    Case("MLP and Adam, a step", _training, 40, 20),
    Case("thin GPT-2, blind on two", _thin, 20, 12, 2, "blind"),
    Case("thin GPT-2, split on two", _thin, 20, 12, 2, "split", quick=True),
)


@contextmanager
def _behind(urls: Sequence[str], link: Link) -> Iterator[list[str]]:
    with ExitStack() as stack:
        if link.delay_s or link.bytes_per_s:
            yield [stack.enter_context(proxied(url, link)) for url in urls]
        else:
            yield list(urls)


def _pool(urls: Sequence[str]) -> Pool:
    """Measured as a session measures it when it connects."""
    settings = ClientSettings()
    transports = [HttpTransport(url, None, mode=settings.transport) for url in urls]
    opened = [(transport, transport.open_session(wants(), 5.0)) for transport in transports]
    try:
        return calibrated(opened, settings, wants())
    finally:
        for transport, grant in opened:
            transport.close_session(grant, 2.0)
            transport.close()


# -- the comparison


def run(options: Options, report: Report) -> None:
    torch.set_num_threads(1)
    named = set(options.workloads)
    cases = [
        case for case in CASES if case.name in named or (not named and (case.quick or not options.quick))
    ]
    if named - {case.name for case in CASES}:
        raise UsageError(f"the programs of sim are: {'; '.join(case.name for case in CASES)}")
    rtts = options.rtts or (RTTS_MS[:2] if options.quick else RTTS_MS)
    rates = dict(list(RATES.items())[:2]) if options.quick else RATES
    errors: list[float] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remora-sim-")))
        started = [EmbeddedExecutor("--threads", "1") for _ in range(2)]
        for one in started:
            stack.callback(one.stop)
        direct = [one.start() for one in started]
        for number, case in enumerate(cases):
            trace = folder / f"{number}.jsonl"
            timed(case, direct, trace=trace)
            for rtt_ms in rtts:
                for name, rate in rates.items():
                    link = Link(rate, rtt_ms / 2e3)
                    with _behind(direct[: case.executors], link) as urls:
                        errors.append(_compare(report, case, trace, urls, f"RTT {rtt_ms:g} ms, {name}"))
    report.bar("simulated and measured, median error", statistics.median(errors), "<=", MEDIAN_BAR)
    report.bar("simulated and measured, worst error", max(errors), "<=", WORST_BAR)


def _compare(report: Report, case: Case, trace: Path, urls: Sequence[str], where: str) -> float:
    """Relative error of a step."""
    pool = replace(_pool(urls), devices=learned(trace)[0].devices)
    found = simulated(trace, Scenario(pool=pool, policy=case.policy or "local"))
    per_step = 1e3 / case.steps
    predicted_ms = report.row(
        f"{case.name}, {where}",
        "simulated",
        "ms",
        [seconds * per_step for seconds in found.stretches()[-STRETCHES:]],
    )
    measured_ms = report.row(
        f"{case.name}, {where}",
        "measured",
        "ms",
        [seconds * per_step for seconds in timed(case, urls)],
    )
    error = abs(predicted_ms / measured_ms - 1)
    report.say(f"{case.name}, {where}: {predicted_ms:.2f} simulated, {measured_ms:.2f} measured, {error:.0%}")
    return error
