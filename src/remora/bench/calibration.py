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
from remora.bench.graphs import graph_of
from remora.bench.harness import Options, Report
from remora.capture.recorder import Segment
from remora.config import ClientSettings
from remora.device.meta import TensorMeta
from remora.device.module import torch_version
from remora.device.sink import Moment
from remora.plan import calibrate
from remora.plan.devices import Device
from remora.plan.duration import Duration, total
from remora.plan.estimate import costs
from remora.plan.probe_suite import CPU, GPU, suite
from remora.plan.record import Key, Record
from remora.pool.embedded import EmbeddedExecutor
from remora.session.connect import current
from remora.session.link import Link
from remora.transport.http import HttpTransport
from remora.wire.limits import OLDEST_PROTOCOL, PROTOCOL
from remora.wire.messages import DeviceFacts, DeviceQuery, Marked, OpenSession

MEDIAN_BAR, WORST_BAR = 0.10, 0.30  # of the relative error, once templates have run
CALIBRATION_S = {"cpu": 0.5, "cuda": 0.3}
LEARNED = 3  # runs that the record sees before its predictions are judged
CACHE_NBYTES = {"cpu": 32 << 20, "cuda": 50 << 20}


def run(options: Options, report: Report) -> None:
    """One thread in the executor."""
    executor = EmbeddedExecutor("--threads", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        url = options.url or executor.start()
        device = _calibrated(report, url)
        remora.connect(url)
        record = Record()
        errors: list[float] = []
        for name, program in _programs(options.quick):
            errors += _judge(report, name, program, device, record, 5 if options.quick else 12)
        report.bar(
            "predicted / measured, all programs: median error", statistics.median(errors), "<=", MEDIAN_BAR
        )
        report.bar("predicted / measured, all programs: worst error", max(errors), "<=", WORST_BAR)
    finally:
        torch.set_num_threads(threads)
        remora.disconnect()
        executor.stop()


# -- measuring the device


def _calibrated(report: Report, url: str) -> Device:
    transport = HttpTransport(url, None)
    wants = OpenSession(PROTOCOL, OLDEST_PROTOCOL, torch_version())
    grant = transport.open_session(wants, 5.0)
    link = Link(transport, grant, ClientSettings(), report.say)
    link.open(5.0)
    try:
        kind = grant.device.partition(":")[0]
        bench = suite(CPU if kind == "cpu" else GPU)
        told = calibrate.script(bench)
        started = time.perf_counter()
        marked = _answers(link, told)
        seconds = time.perf_counter() - started
        link.commit([DeviceQuery(told.tickets + 1)])
        link.transmit()
        facts = link.wait(told.tickets + 1)
        assert isinstance(facts, DeviceFacts)
    finally:
        transport.close_session(grant, 2.0)
        link.close()
        transport.close()
    report.row("calibration", kind, "s", [seconds])
    report.bar(f"calibration of a {kind} executor, s", seconds, "<=", CALIBRATION_S[kind])
    found = calibrate.measured(told, marked, kind != "cpu")
    fitted = calibrate.fit(facts.name, bench, found, facts.total_nbytes, CACHE_NBYTES[kind], kind != "cpu")
    for name, ratio in fitted.held_out.items():
        report.row(f"probe {name}: predicted / measured", kind, "x", [ratio])
    return fitted.device


def _answers(link: Link, told: calibrate.Script) -> dict[int, Marked]:
    marked: dict[int, Marked] = {}
    link.on_mark = lambda mark: marked.__setitem__(mark.ticket, mark)
    last = told.marks[-1][2]
    link.commit(list(told.messages))
    link.transmit()
    link.wait_until(lambda: last in marked)
    assert link.failed is None, link.failed
    return marked


# -- predicting programs


@dataclass
class Seen:
    """A segment that was sent, with its slots' metadata at that time and the executor's clock before it."""

    segment: Segment
    metas: list[TensorMeta]
    before: Moment


class Watch:
    """A tap of the session: puts a mark before each segment."""

    def __init__(self) -> None:
        session = current()
        assert session is not None
        self.session = session
        self.seen: list[Seen] = []

    def __call__(self, segment: Segment) -> None:
        self.seen.append(
            Seen(segment, [value.meta for value in segment.slots], self.session.mark(settle=True))
        )

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
) -> list[float]:
    """Relative errors of the whole program's prediction, once it has been learned; reports those before too."""
    watch = Watch()
    program()
    raw, learned, took = [], [], []
    for trial in range(LEARNED + trials):
        modelled, corrected, measured_s = [], [], 0.0
        for seen, seconds in watch.run(program):
            predicted = _predict(seen, device)
            size = sum(meta.nbytes for meta in seen.metas).bit_length()
            key = Key(seen.segment.captured.template.id, size, device.name)
            modelled.append(predicted)
            corrected.append(record.correct(key, predicted))
            record.add(key, predicted.seconds, seconds)
            measured_s += seconds
        raw.append(total(modelled).seconds / measured_s)
        took.append(measured_s * 1e3)
        if trial >= LEARNED:
            learned.append(total(corrected).seconds / measured_s)
    report.row(f"{name}: measured", "executor", "ms", took)
    report.row(f"{name}: predicted / measured", "model alone", "x", raw)
    report.row(f"{name}: predicted / measured", "with what was learned", "x", learned)
    report.say(f"{name}: model alone {statistics.median(raw):.2f}, learned {statistics.median(learned):.2f}")
    return [abs(ratio - 1.0) for ratio in learned]


def _predict(seen: Seen, device: Device) -> Duration:
    """By the model alone, without the message's own cost, which is not in the executor's busy seconds."""
    graph = graph_of(seen.segment, seen.metas)
    predicted = costs(graph, (device,)).part(0).duration
    return Duration(predicted.seconds - device.run_s, predicted.errors)


def _programs(quick: bool) -> list[tuple[str, Callable[[], Any]]]:
    torch.manual_seed(0)
    return [*_perceptron(), *_resnet(), *_gpt2(quick)]


def _perceptron() -> list[tuple[str, Callable[[], Any]]]:
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
