"""The experiment `train`: training steps and an image model on an executor over loopback, against the local CPU."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

import remora
from remora.bench import networks
from remora.bench.harness import Impossible, Options, Report, interleave
from remora.bench.threads import one_thread
from remora.pool.embedded import EmbeddedExecutor

LOSSES = 50  # steps whose losses are compared
WARM_UP = 8  # steps, after which templates repeat
COUNTED = 20  # steps whose waits, templates and bytes are counted
STEP_BAR, FORWARD_BAR = 3.0, 1.1

Step = Callable[[], torch.Tensor]  # one training step; returns its loss, which nobody has read


@one_thread()
def run(options: Options, report: Report) -> None:
    """One thread in the client, one in the executor; the arms take turns in random order."""
    load = os.getloadavg()[0]
    report.say(f"order of trials from seed {options.seed}; load average {load:.2f}")
    executor = EmbeddedExecutor("--threads", "1")
    try:
        with ThreadPoolExecutor(1) as starting:
            url = options.url or starting.submit(executor.start).result()
        remora.connect(url)
        rng = random.Random(options.seed)
        for program in PROGRAMS:
            _measure(report, program, options.quick, rng)
        _forward(report, options.quick, rng)
    finally:
        remora.disconnect()
        executor.stop()
    report.row("load average", "before, after", "processes", [load, os.getloadavg()[0]])


@dataclass(frozen=True)
class Program:
    """A model in training. make: the step of a fresh model on a device, from one seed. steps: of one timed trial."""

    name: str
    make: Callable[[str], Step]
    steps: int


def _gpt(device: str) -> Step:
    """Fresh ids, clipping and a schedule in each step, as in a real loop."""
    torch.manual_seed(0)
    model = networks.TinyGpt().to(device)
    ids = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)

    def step() -> torch.Tensor:
        text = torch.randint(0, networks.VOCABULARY, (8, networks.TOKENS + 1), generator=ids).to(device)
        optimizer.zero_grad()
        logits = model(text[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return loss.detach()

    return step


PROGRAMS = (
    Program("MLP + Adam", networks.mlp_step, 100),
    Program("tiny GPT with tied weights + Adam", _gpt, 20),
)


def _measure(report: Report, program: Program, quick: bool, rng: random.Random) -> None:
    expected, got = (losses(program.make(device), LOSSES) for device in ("cpu", "remora"))
    differ = sum(a != b for a, b in zip(expected, got, strict=True))
    report.bar(f"{program.name}: losses of {LOSSES} steps that differ from local", differ, "==", 0)
    remote = program.make("remora")
    counts(report, program.name, remote)

    steps = max(5, program.steps // (4 if quick else 1))
    arms = {"local": program.make("cpu"), "remote": remote}
    report.say(f"{program.name}: {5 if quick else 11} trials of {steps} steps, each way")
    trials = interleave(
        {arm: _timed_steps(step, steps) for arm, step in arms.items()}, 5 if quick else 11, rng
    )
    _compare(report, f"{program.name}: step", trials, STEP_BAR)


def losses(step: Step, n: int) -> list[float]:
    """The losses of `n` steps, read when all is done."""
    return [loss.item() for loss in [step() for _ in range(n)]]


def counts(report: Report, name: str, step: Step) -> None:
    """The bars on what a step that nobody reads may cost besides time."""
    for _ in range(WARM_UP):
        step()
    before = remora.stats()
    for _ in range(COUNTED):
        step()
    spent = remora.stats() - before
    report.row(f"{name}: ops per step", "remote", "rows", [spent.ops / COUNTED])
    report.row(f"{name}: bytes per step", "remote", "B", [spent.bytes_sent / COUNTED])
    report.bar(f"{name}: blocked in {COUNTED} steps", spent.round_trips, "==", 0)
    report.bar(f"{name}: new templates in {COUNTED} steps", spent.templates, "==", 0)


def _timed_steps(step: Step, n: int) -> Callable[[], float]:
    def trial() -> float:
        started = time.perf_counter()
        for _ in range(n):
            loss = step()
        loss.item()  # all has run
        return (time.perf_counter() - started) / n * 1e3

    return trial


def _forward(report: Report, quick: bool, rng: random.Random) -> None:
    torch.manual_seed(0)
    local = networks.ResNet18().eval()
    images = torch.randn(4, 3, 224, 224)
    remote = networks.ResNet18().eval()
    remote.load_state_dict(local.state_dict())
    arms: dict[str, tuple[Any, torch.Tensor]] = {
        "local": (local, images),
        "remote": (remote.to("remora"), images.to("remora")),
    }
    report.say(f"ResNet-18, batch 4: {5 if quick else 15} forwards, each way")
    with torch.no_grad():
        if not torch.equal(remote(arms["remote"][1]).cpu(), local(images)):
            raise Impossible("ResNet-18: outputs differ, so the times compare different work")

        def timed(model: Any, batch: torch.Tensor) -> float:
            started = time.perf_counter()
            model(batch).cpu()
            return (time.perf_counter() - started) * 1e3

        trials = interleave(
            {arm: lambda pair=pair: timed(*pair) for arm, pair in arms.items()}, 5 if quick else 15, rng
        )
    _compare(report, "ResNet-18 of batch 4: forward", trials, FORWARD_BAR)


def _compare(report: Report, name: str, trials: dict[str, list[float]], bar: float) -> None:
    for arm, ms in trials.items():
        report.row(name, arm, "ms", ms)
    ratio = statistics.median(trials["remote"]) / statistics.median(trials["local"])
    report.bar(f"{name}, remote / local", ratio, "<=", bar)
