"""The experiment `calibration`: how well the cost model predicts what real programs take on an executor.

The executor is measured by the probes, which takes part of a second; then each program's segments are predicted and
measured, by the executor's own clock, before and after the record has seen some runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

import remora
from remora.bench import models, networks
from remora.bench.harness import Options, Report
from remora.bench.threads import one_thread
from remora.capture.recorder import Segment
from remora.config import ClientSettings
from remora.device.module import torch_version
from remora.device.sink import Moment
from remora.ir.annotated import Graph, Outside
from remora.plan.devices import Device
from remora.plan.duration import Duration, total
from remora.plan.estimate import costs
from remora.plan.record import Key, Record
from remora.pool.embedded import EmbeddedExecutor
from remora.session.calibration import probing
from remora.session.connect import current
from remora.session.graphs import facts_of, graph_of
from remora.transport.http import HttpTransport
from remora.wire.limits import OLDEST_PROTOCOL, PROTOCOL
from remora.wire.messages import OpenSession

MEDIAN_BAR, WORST_BAR = 0.10, 0.30  # of the relative errors of programs, once their templates have run
CALIBRATION_S = {"cpu": 0.5, "cuda": 0.3}
LEARNED = 3  # runs that the record sees before its predictions are judged


@one_thread()
def run(options: Options, report: Report) -> None:
    """One thread in the executor."""
    executor = EmbeddedExecutor("--threads", "1")
    try:
        url = options.url or executor.start()
        device = calibrated(report, url)
        remora.connect(url)
        record = Record()
        errors: list[float] = []
        for name, program in _programs(options.quick):
            errors.append(_judge(report, name, program, device, record, 5 if options.quick else 15))
        report.bar(
            "predicted / measured, all programs: median error", statistics.median(errors), "<=", MEDIAN_BAR
        )
        report.bar("predicted / measured, all programs: worst error", max(errors), "<=", WORST_BAR)
    finally:
        remora.disconnect()
        executor.stop()


# -- measuring the device


def calibrated(report: Report, url: str) -> Device:
    """Measures an executor as a session does that opens a pool."""
    transport = HttpTransport(url, None)
    wants = OpenSession(PROTOCOL, OLDEST_PROTOCOL, torch_version())
    try:
        with probing(transport, ClientSettings(), wants) as probe:
            started = time.perf_counter()
            fitted = probe.fitted(probe.name(), *probe.measured())
            seconds = time.perf_counter() - started
            kind = probe.grant.device.partition(":")[0]
    finally:
        transport.close()
    report.row("calibration", kind, "s", [seconds])
    report.bar(f"calibration of a {kind} executor, s", seconds, "<=", CALIBRATION_S[kind])
    for name, ratio in fitted.held_out.items():
        report.row(f"probe {name}: predicted / measured", kind, "x", [ratio])
    return fitted.device


# -- predicting programs


@dataclass
class Seen:
    """A segment that was sent, as a graph, and the executor's clock before it."""

    template: bytes
    graph: Graph
    before: Moment


class Watch:
    """A tap of the session: puts a mark before each segment."""

    def __init__(self) -> None:
        session = current()
        assert session is not None
        self.session = session
        self.seen: list[Seen] = []

    def __call__(self, segment: Segment) -> None:
        slots = [Outside(facts_of(value.meta), at, value.uploaded) for at, value in enumerate(segment.slots)]
        graph = graph_of(segment, slots)
        self.seen.append(Seen(segment.captured.template.id, graph, self.session.mark(settle=True)))

    def run(self, program: Callable[[], Any]) -> list[tuple[Seen, float]]:
        """One run of a program: its segments, with the seconds that each one took the executor."""
        self.seen.clear()
        self.session.tap = self
        try:
            program()
            self.session.barrier()
        finally:
            self.session.tap = None
        last = self.session.mark(settle=True)
        self.session.passed(last, wait=True)
        moments = [*(seen.before for seen in self.seen), last]
        return [
            (seen, after.busy_s - seen.before.busy_s)
            for seen, after in zip(self.seen, moments[1:], strict=True)
        ]


def _judge(
    report: Report, name: str, program: Callable[[], Any], device: Device, record: Record, trials: int
) -> float:
    """Relative error of the whole program's prediction, by the median of its runs, once it has been learned."""
    watch = Watch()
    program()
    raw, learned, took, inside = [], [], [], 0
    for trial in range(LEARNED + trials):
        modelled, corrected, measured_s = [], [], 0.0
        for seen, seconds in watch.run(program):
            predicted = predict(seen.graph, device)
            key = Key(seen.template, _bucket(seen.graph), device.name)
            modelled.append(predicted)
            corrected.append(record.correct(key, predicted))
            record.add(key, predicted.seconds, seconds)
            measured_s += seconds
        raw.append(total(modelled).seconds / measured_s)
        took.append(measured_s * 1e3)
        if trial >= LEARNED:
            whole = total(corrected)
            learned.append(whole.seconds / measured_s)
            inside += abs(whole.seconds - measured_s) <= 2 * whole.sigma_s
    report.row(f"{name}: measured", "executor", "ms", took)
    report.row(f"{name}: predicted / measured", "model alone", "x", raw)
    report.row(f"{name}: predicted / measured", "with what was learned", "x", learned)
    report.say(f"{name}: model alone {statistics.median(raw):.2f}, learned {statistics.median(learned):.2f}")
    report.row(f"{name}: runs within two error bars", "with what was learned", "share", [inside / trials])
    return abs(statistics.median(learned) - 1.0)


def predict(graph: Graph, device: Device) -> Duration:
    """By the model alone, without the message's own cost, which is not in the executor's busy seconds."""
    predicted = costs(graph, (device,)).part(0).duration
    return Duration(predicted.seconds - device.run_s, predicted.errors)


def _bucket(graph: Graph) -> int:
    """The power of two of the bytes that the graph reads from outside."""
    return sum(slot.facts.nbytes for slot in graph.slots).bit_length()


def _programs(quick: bool) -> list[tuple[str, Callable[[], Any]]]:
    torch.manual_seed(0)
    return [*perceptron(), *_resnet(), *_gpt2(quick)]


def perceptron() -> list[tuple[str, Callable[[], Any]]]:
    model = networks.mlp().to("remora")
    inputs, labels = torch.randn(64, 784).to("remora"), torch.randint(0, 10, (64,)).to("remora")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        loss.item()

    return [("MLP and Adam, a step", step)]


def _resnet() -> list[tuple[str, Callable[[], Any]]]:
    model = networks.ResNet18().eval().to("remora")
    images = torch.randn(4, 3, 224, 224).to("remora")

    def forward() -> None:
        with torch.no_grad():
            model(images).cpu()

    return [("ResNet-18 of batch 4, forward", forward)]


def _gpt2(quick: bool) -> list[tuple[str, Callable[[], Any]]]:
    model = models.gpt2().to("remora")
    ids = models.prompt(256, vocabulary=50257).to("remora")
    state: dict[str, Any] = {}

    def prefill() -> None:
        with torch.no_grad():
            out = model(ids, use_cache=True)
            state["cache"], state["next"] = out.past_key_values, out.logits[:, -1:].argmax(-1)
            state["next"].cpu()

    def decode() -> None:
        with torch.no_grad():
            out = model(state["next"], past_key_values=state["cache"], use_cache=True)
            state["cache"], state["next"] = out.past_key_values, out.logits[:, -1:].argmax(-1)
            state["next"].cpu()

    return [("GPT-2 124M, prefill of 256", prefill), ("GPT-2 124M, decode", decode)]
