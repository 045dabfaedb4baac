"""What the device says of the executor's memory and of what it computes on."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

MIB = 1 << 20


def test_memory_counts_what_the_program_holds(connected: ModuleType) -> None:
    torch.remora.reset_peak_memory_stats()
    start = torch.remora.memory_allocated()
    x = torch.ones(2, MIB, dtype=torch.uint8, device="remora")
    row = x[0]
    assert torch.remora.memory_allocated() == start + 2 * MIB
    del x
    assert torch.remora.memory_allocated() == start + 2 * MIB  # the view holds all of it
    del row
    assert torch.remora.memory_allocated() == start
    assert torch.remora.max_memory_allocated() == start + 2 * MIB
    torch.remora.reset_peak_memory_stats()
    assert torch.remora.max_memory_allocated() == start


def test_uploaded_weights_count(connected: ModuleType) -> None:
    start = torch.remora.memory_allocated()
    weight = torch.rand(MIB).to("remora")
    assert torch.remora.memory_allocated() == start + 4 * MIB
    stats = torch.remora.memory_stats()
    assert stats["allocated_bytes.all.current"] == start + 4 * MIB
    assert stats["allocated_bytes.all.allocated"] >= start + 4 * MIB
    del weight
    torch.remora.empty_cache()
    assert torch.remora.memory_allocated() == start
    assert "allocated_bytes.all.peak" in torch.remora.memory_summary()


def test_free_memory_shrinks_by_what_is_made(connected: ModuleType) -> None:
    free, total = torch.remora.mem_get_info()
    assert total == 2 << 30  # what the executor of the tests was given
    x = torch.ones(MIB, device="remora")
    assert torch.remora.mem_get_info() == (free - x.nbytes, total)


def test_the_device_describes_itself_and_is_asked_once(connected: ModuleType) -> None:
    before = connected.stats()
    known = torch.remora.get_device_properties()
    assert (known.type, known.major, known.minor) == ("cpu", 0, 0)
    assert known.name == torch.remora.get_device_name(0)
    assert known.total_memory > 1 << 28
    assert torch.remora.get_device_capability("remora:0") == (0, 0)
    assert torch.remora.is_bf16_supported()
    assert (connected.stats() - before).round_trips == 1


@pytest.mark.parametrize(
    "name", ["get_device_name", "memory_allocated", "mem_get_info", "synchronize", "set_device"]
)
def test_there_is_one_device(connected: ModuleType, name: str) -> None:
    with pytest.raises(RuntimeError, match="remora:1 does not exist"):
        getattr(torch.remora, name)(1)
    with pytest.raises(RuntimeError, match="remora:1 does not exist"), torch.remora.device("remora:1"):
        pass
    with torch.remora.device(0):
        assert torch.remora.current_device() == 0


def test_what_is_not_known_is_refused_by_name(connected: ModuleType) -> None:
    for name in ("max_memory_reserved", "reset_accumulated_memory_stats"):
        with pytest.raises(NotImplementedError, match="memory"):
            getattr(torch.remora, name)()


def test_asking_for_memory_says_what_failed_before(connected: ModuleType) -> None:
    torch.ones(3, 2, device="remora")[torch.tensor([7], device="remora")]
    with pytest.raises(IndexError):
        torch.remora.memory_allocated()
    assert torch.remora.memory_allocated() >= 0
