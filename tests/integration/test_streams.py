"""Streams, events and `torch.accelerator` on the device."""

from __future__ import annotations

import time
from types import ModuleType

import pytest
import torch


def _work() -> torch.Tensor:
    x = torch.ones(300, 300, device="remora")
    for _ in range(20):
        x = x @ x / 300
    return x


def test_an_event_is_passed_once_what_is_before_it_has_run(connected: ModuleType) -> None:
    event = torch.remora.Event()
    assert event.query()  # as of any event that was never recorded
    before = connected.stats()
    out = _work()
    event.record()
    assert (connected.stats() - before).round_trips == 0
    until = time.monotonic() + 30
    while not event.query():
        assert time.monotonic() < until
        time.sleep(0.001)
    assert (connected.stats() - before).round_trips == 0  # asking waits for nothing
    event.synchronize()
    assert (connected.stats() - before).round_trips == 0
    assert out.shape == (300, 300)


def test_elapsed_time_is_the_executors(connected: ModuleType) -> None:
    start, middle, end = (torch.remora.Event(enable_timing=True) for _ in range(3))
    _work()
    start.record()
    _work()
    middle.record()
    time.sleep(0.3)  # here, and not there
    _work()
    end.record()
    end.synchronize()
    first_ms, all_ms = start.elapsed_time(middle), start.elapsed_time(end)
    assert 0 < first_ms < all_ms
    assert middle.elapsed_time(start) == -first_ms


def test_an_event_says_what_failed_before_it(connected: ModuleType) -> None:
    table, event = torch.ones(3, 2, device="remora"), torch.remora.Event()
    table[torch.tensor([7], device="remora")]
    event.record()
    with pytest.raises(IndexError):
        event.synchronize()
    event.synchronize()
    assert event.query()


def test_events_that_cannot_be_timed_say_why(connected: ModuleType) -> None:
    timed, untimed = torch.remora.Event(enable_timing=True), torch.remora.Event()
    with pytest.raises(ValueError, match="must be recorded"):
        timed.elapsed_time(torch.remora.Event(enable_timing=True))
    timed.record()
    untimed.record()
    with pytest.raises(ValueError, match="enable_timing"):
        timed.elapsed_time(untimed)
    with pytest.raises(NotImplementedError, match="other processes"):
        torch.remora.Event(interprocess=True)


def test_streams_are_handles_on_one_order(connected: ModuleType) -> None:
    side, default = torch.remora.Stream(), torch.remora.current_stream()
    assert default == torch.remora.default_stream() != side
    x = torch.zeros(4, device="remora")
    side.wait_stream(default)
    with torch.remora.stream(side):
        assert torch.remora.current_stream() == side
        x += 1
        done = side.record_event()
        with torch.remora.stream(None):
            assert torch.remora.current_stream() == side
    assert torch.remora.current_stream() == default
    default.wait_event(done)
    x *= 3
    x.record_stream(side)
    side.synchronize()
    until = time.monotonic() + 30
    while not side.query():
        assert time.monotonic() < until
    assert x.tolist() == [3] * 4


def test_pytorchs_generic_streams_and_events_are_the_devices(connected: ModuleType) -> None:
    event, stream = torch.Event("remora", enable_timing=True), torch.Stream(device="remora")
    assert isinstance(event, torch.remora.Event)
    assert isinstance(event, torch.Event)
    assert isinstance(stream, torch.remora.Stream)
    assert isinstance(stream, torch.Stream)
    assert event.device == torch.device("remora", 0)
    event.record(stream)
    event.synchronize()
    local = torch.Event("cpu")
    assert isinstance(local, torch.Event)
    assert type(local) is not type(event)

    class Derived(torch.Event):
        pass

    assert isinstance(Derived("cpu"), Derived)
    assert not isinstance(local, Derived)
    assert issubclass(torch.remora.Event, torch.Event)


def test_accelerator_functions_speak_of_the_executor(
    connected: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *a, **k: torch.device("remora"))
    x = torch.ones(1 << 18, device="remora")
    torch.accelerator.synchronize()
    torch.accelerator.set_device_index(0)
    assert torch.accelerator.device_count() == 1
    assert torch.accelerator.current_stream() == torch.remora.current_stream()
    assert torch.accelerator.memory_allocated() >= x.nbytes
    assert torch.accelerator.memory_stats()["allocated_bytes.all.current"] >= x.nbytes
    free, total = (
        torch.accelerator.get_memory_info() if hasattr(torch.accelerator, "get_memory_info") else (1, 2)
    )
    assert 0 < free < total
    torch.accelerator.empty_cache()
    with pytest.raises(RuntimeError, match="does not exist"):
        torch.accelerator.synchronize(1)
    assert isinstance(torch.Event(), torch.remora.Event)


def test_where_the_accelerator_is_another_one_nothing_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *a, **k: None)
    with pytest.raises(RuntimeError):
        torch.accelerator.memory_allocated(5)
