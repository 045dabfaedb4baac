"""`torch.profiler` shows what the executor computed, range by range."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

pytestmark = pytest.mark.filterwarnings("ignore:.*Profiler clears events")


def _work(times: int) -> torch.Tensor:
    x = torch.ones(256, 256, device="remora")
    for _ in range(times):
        x = x @ x / 256
    return x


def _run() -> torch.Tensor:
    with record_function("outer"):
        out = _work(2)
        with record_function("inner"):
            out = out + _work(20)
    with record_function("idle"):
        sum(range(100_000))
    return out


def _times_us(prof: Any) -> dict[str, float]:
    return {event.key: event.device_time_total for event in prof.key_averages()}


def test_ranges_show_the_executors_time(connected: ModuleType) -> None:
    before = connected.stats()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.PrivateUse1]) as prof:
        out = _run()
        ranges = (connected.stats() - before).round_trips
    assert ranges == 0  # marks wait for nothing
    times = _times_us(prof)
    assert times["outer"] > times["inner"] > 0
    assert times["idle"] == 0
    averages = {event.key: event for event in prof.key_averages()}
    assert averages["outer"].self_device_time_total < times["outer"]
    assert "REMORA" in prof.key_averages().table().upper()
    assert out.cpu().shape == (256, 256)


def test_each_call_of_a_range_counts_and_steps_are_apart(connected: ModuleType) -> None:
    counted = []
    with profile(
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=2),
        on_trace_ready=lambda prof: counted.append(
            {e.key: (e.count, e.device_time_total) for e in prof.key_averages()}
        ),
    ) as prof:
        for _ in range(4):
            with record_function("work"):
                _work(5)
            prof.step()
    (seen,) = counted
    assert seen["work"][0] == 2
    assert seen["work"][1] > 0


def test_optimizer_steps_are_ranges(connected: ModuleType) -> None:
    layer = torch.nn.Linear(64, 64).to("remora")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with profile() as prof:
        layer(torch.ones(4, 64, device="remora")).sum().backward()
        optimizer.step()
    assert _times_us(prof)["Optimizer.step#SGD.step"] > 0


def test_without_a_profiler_ranges_cost_nothing(connected: ModuleType) -> None:
    enter = record_function.__enter__
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        assert record_function.__enter__ is enter
        _run()
    assert _times_us(prof)["outer"] == 0
    with profile():
        assert record_function.__enter__ is not enter
    assert record_function.__enter__ is enter
    before = connected.stats()
    with record_function("alone"):
        _work(1)
    assert (connected.stats() - before).segments == 0
