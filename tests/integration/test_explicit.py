"""placement="explicit": each executor is a device of its own, as several GPUs are. Two executors, real sockets."""

from __future__ import annotations

import copy
import os
import random
import threading
from typing import Any

import pytest
import torch
from spread_programs import SpreadProgram
from test_random_programs import check

import remora
from remora.device.sink import bound
from remora.errors import ExecutorError
from remora.ir.node import Symbol

PROGRAMS = 120
ZERO, ONE = torch.device("remora", 0), torch.device("remora", 1)


def peer_bytes() -> int:
    return remora.stats().peer_bytes


def test_random_programs_spread_over_devices(both, record_property):
    seed = int(os.environ.get("RANDOM_PROGRAMS_SEED") or random.SystemRandom().randrange(10**9))
    record_property("RANDOM_PROGRAMS_SEED", seed)
    before = peer_bytes()
    for n in range(PROGRAMS):
        check(SpreadProgram(seed * 1000 + n, 2))
    assert peer_bytes() > before


# -- which devices there are


def test_there_is_one_device_for_each_executor(both):
    assert torch.remora.device_count() == torch.accelerator.device_count() == 2
    assert len(torch.remora.default_generators) == 2
    for device in (ZERO, ONE):
        made = torch.arange(4.0, device=device)
        assert made.device == device
        assert (made * 2).device == made.view(2, 2).device == made.add_(1).device == device
        assert made.tolist() == [1.0, 2.0, 3.0, 4.0]
        assert str(made) == f"tensor([1., 2., 3., 4.], device='{device}')"
    assert peer_bytes() == 0


def test_an_index_out_of_range_says_how_many_there_are(both):
    message = "remora:2 does not exist: this session has 2 executors, remora:0 to remora:1"
    for call in (
        lambda: torch.ones(2, device="remora:2"),
        lambda: torch.ones(2).to("remora:2"),
        lambda: torch.ones(2, device="remora:0").to("remora:2"),
        lambda: torch.remora.set_device(2),
        lambda: torch.remora.device(2),
        lambda: torch.Generator("remora:2"),
        lambda: torch.remora.memory_allocated(2),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    assert torch.ones(2, device="remora").sum().item() == 2


def test_the_current_device_is_what_remora_means(both):
    def devices() -> set[torch.device]:
        made = (
            torch.ones(2, device="remora"),
            torch.tensor([1.0, 2.0], device="remora"),
            torch.zeros(2).to("remora"),
            torch.zeros(2).to(device="remora", dtype=torch.float64),
            torch.zeros(2).remora(),
            torch.ones(2, device="remora:0").to("remora"),
            torch.zeros_like(torch.zeros(2), device="remora"),
            torch.nn.Linear(1, 1).to("remora").weight,
            torch.nn.Linear(1, 1, device="remora").weight,
        )
        index = torch.remora.current_device()
        assert torch.accelerator.current_device_index() == index
        assert torch.remora.current_stream().device.index == index
        return {each.device for each in made}

    assert devices() == {ZERO}
    torch.remora.set_device(1)
    assert devices() == {ONE}
    with torch.remora.device(0):
        assert devices() == {ZERO}
        with torch.remora.device(None), torch.remora.device_of(torch.ones(1, device="remora:1")):
            assert devices() == {ONE}
        assert devices() == {ZERO}
    assert devices() == {ONE}
    with torch.accelerator.device_index(0):
        assert devices() == {ZERO}
    torch.accelerator.set_device_index("remora:0")
    assert devices() == {ZERO}
    torch.accelerator.set_device_index(1)
    assert devices() == {ONE}
    found: list[Any] = []
    other = threading.Thread(target=lambda: found.append(devices()))  # each thread has its own
    other.start()
    other.join()
    assert found == [{ZERO}]


def test_a_block_on_a_device_makes_tensors_there(both):
    torch.remora.set_device(1)
    with torch.device("remora:0"):
        assert torch.ones(2).device == ZERO
        torch.remora.set_device(0)
        torch.remora.set_device(1)
        assert torch.ones(2).device == ZERO
    assert torch.ones(2).device.type == "cpu"
    torch.remora.set_device(0)
    with torch.device("remora:1"):
        assert torch.ones(2).device == torch.nn.Linear(1, 1).weight.device == ONE


def test_fewer_executors_after_a_new_connection(executors):
    remora.connect(executors, placement="explicit")
    torch.remora.set_device(1)
    assert torch.ones(2, device="remora").device == ONE
    lost = torch.ones(2, device="remora:1")
    generator, default = torch.Generator("remora:1"), torch.remora.default_generators[1]
    stream = torch.remora.current_stream(1)
    remora.disconnect()
    remora.connect(executors[:1], placement="explicit")
    try:
        assert (torch.remora.device_count(), torch.remora.current_device()) == (1, 0)
        assert torch.ones(2).to("remora").device == ZERO
        for call in (
            lambda: torch.ones(2, device="remora:1"),
            lambda: torch.rand(2, generator=generator, device="remora"),
            lambda: default.manual_seed(1),
            lambda: stream.record_event(),
        ):
            with pytest.raises(RuntimeError, match="remora:1 does not exist: this session has one executor"):
                call()
        with pytest.raises(remora.errors.Disconnected):
            lost.sum().item()
    finally:
        remora.disconnect()


def test_without_it_the_pool_is_one_device(executors):
    remora.connect(executors)
    try:
        assert torch.remora.device_count() == 1
        with pytest.raises(RuntimeError, match="remora:1 does not exist: this session has one executor"):
            torch.ones(2, device="remora:1")
        template = []
        bound.sink.tap = lambda segment: template.append(segment.captured.template)
        torch.ones(2, device="remora:0").sum().item()
        assert ("device", Symbol("device", "executor")) in template[0].nodes[0].kwargs
    finally:
        remora.disconnect()


# -- copies between devices


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_copies_are_the_values_and_go_directly(both, dtype):
    local = (torch.randn(40, 30, 20) * 3).to(dtype)
    there = local.to("remora:1")
    torch.remora.synchronize()
    before, sent = peer_bytes(), remora.stats().bytes_sent
    for view in (
        lambda t: t,
        lambda t: t.permute(2, 0, 1),
        lambda t: t[::2, 1:, 3],
        lambda t: t[:1].expand(5, -1, -1),
    ):
        source, expected = view(there), view(local)
        moved = source.to("remora:0", non_blocking=True)
        assert moved.device == ZERO
        like = torch.empty_like(expected, device="meta").stride()  # as .to() of any device lays it out
        assert moved.stride() == like
        assert torch.equal(moved.cpu(), expected)
        assert torch.equal(source.cpu(), expected)
    elements = local.numel() * 2 + local[::2, 1:, 3].numel() + local[:1].numel() * 5
    assert peer_bytes() - before >= elements * dtype.itemsize
    assert remora.stats().bytes_sent - sent < 8000  # nothing of it went through the client


def test_copy_converts_broadcasts_and_keeps_what_it_does_not_write(both):
    target = torch.zeros(3, 4, dtype=torch.float16, device="remora:0")
    row = torch.arange(4.0, dtype=torch.float64, device="remora:1")
    before = peer_bytes()
    target[1:].t().copy_(row[:, None], non_blocking=True)
    target[0, ::2] = row[2]
    assert target.tolist() == [[2, 0, 2, 0], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert peer_bytes() - before <= 5 * 2 + 200  # it is converted before it goes
    assert row.to("remora:0", torch.int32).tolist() == [0, 1, 2, 3]
    assert torch.equal(target.to("remora:1", copy=True).cpu(), target.cpu())
    assert target.to("remora:0") is target


def test_what_is_written_before_and_after_a_copy(both):
    a, b = torch.zeros(3, device="remora:0"), torch.ones(3, device="remora:1")
    seen = []
    for _ in range(4):  # one segment: copies take what is there at their place, in both directions
        b.add_(1)
        a.copy_(b)
        b.mul_(2)
        seen.append(b.to("remora:0"))
        a.add_(b.to(a.device))
        b.copy_(a)
    values, x, y = [], 0, 1
    for _ in range(4):
        y += 1
        x = y
        y *= 2
        values.append(y)
        x += y
        y = x
    assert (a.tolist(), b.tolist()) == ([x] * 3, [y] * 3)
    assert [each[0].item() for each in seen] == values


def test_storages_and_views_belong_to_one_device(both):
    base = torch.zeros(4, 4, device="remora:1")
    view = base[1:3].t()
    moved = view.to("remora:0")
    view.add_(1)
    moved.add_(5)
    assert base.sum().item() == 8
    assert moved.sum().item() == 40
    assert view.untyped_storage()._cdata == base.untyped_storage()._cdata
    assert moved.untyped_storage()._cdata != base.untyped_storage()._cdata
    assert base.untyped_storage().device == ONE
    grown = torch.ones(2, device="remora:1").resize_(6)
    assert grown.device == ONE
    assert grown.tolist()[:2] == [1, 1]
    twin = copy.deepcopy(base)
    assert twin.device == ONE
    for other in (torch.zeros(2), moved, moved.untyped_storage()):
        with pytest.raises(RuntimeError, match="the devices must match"):
            base.set_(other)
    held = torch.nn.Parameter(torch.ones(3, device="remora:0"))
    (held * 2).sum().backward()
    held.grad, held.data = None, held.data.to("remora:1")
    (held * 3).sum().backward()
    assert held.device == held.grad.device == ONE
    assert held.grad.tolist() == [3, 3, 3]


def test_nothing_is_kept_of_a_copy_on_its_way(both):
    source = torch.ones(1 << 18, device="remora:1")
    kept = source.to("remora:0")
    torch.remora.synchronize()
    for index, tensor in ((0, kept), (1, source)):
        assert torch.remora.memory_allocated(index) == tensor.nbytes
    target = torch.zeros(1 << 18, device="remora:0")
    target.copy_(source)
    assert torch.remora.memory_allocated(0) == 2 * kept.nbytes
    assert torch.remora.memory_allocated(1) == source.nbytes
    del kept, target
    assert torch.remora.memory_allocated(0) == 0


def test_memory_and_properties_are_of_each_device(both):
    assert torch.remora.get_device_properties(1).type == "cpu"
    held = torch.ones(1 << 16, device="remora:1")
    free, total = torch.remora.mem_get_info(1)
    assert (total, total - free) == (2 << 30, held.nbytes)
    assert torch.remora.mem_get_info("remora:0")[0] == 2 << 30
    torch.remora.reset_peak_memory_stats(0)
    assert torch.remora.max_memory_allocated(1) >= held.nbytes
    assert torch.remora.max_memory_allocated(0) == 0


# -- calls with tensors of several devices


def test_mixed_devices_are_an_error_at_the_call_and_nothing_is_lost(both):
    a, b = torch.ones(2, 2, device="remora:0"), torch.full((2, 2), 2.0, device="remora:1")
    pending = a * 3
    message = "Expected all tensors to be on the same device, but found at least two devices, remora:0 and remora:1!"
    for call in (
        lambda: a + b,
        lambda: b.add_(a),
        lambda: torch.cat([a, b]),
        lambda: torch.nn.functional.linear(a, b),
        lambda: a @ b,
        lambda: torch.add(a, a, out=torch.empty(2, 2, device="remora:1")),
        lambda: torch.where(a > 0, a, b),
        lambda: a[torch.zeros(1, dtype=torch.int64, device="remora:1")],
        lambda: a + b.sum(),
        lambda: torch.nn.functional.scaled_dot_product_attention(a[None], a[None], b[None]),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    with pytest.raises(RuntimeError, match="remora:1 and cpu"):
        b + torch.ones(2, 2)
    assert pending.tolist() == [[3, 3], [3, 3]]
    assert b.tolist() == [[2, 2], [2, 2]]


def test_what_pytorch_takes_of_other_devices(both):
    a, b = torch.zeros(3, device="remora:0"), torch.arange(3.0, device="remora:1")
    assert (b + torch.tensor(1)).tolist() == [1, 2, 3]
    assert b[torch.tensor([2, 0])].tolist() == [2, 0]
    a[0] = b[2]
    a[torch.tensor([1, 2])] = b[1]
    a[1:].add_(1)
    assert a.tolist() == [2, 2, 2]
    torch._foreach_add_([a, b], [torch.ones_like(a), torch.ones_like(b)])
    assert (a.tolist(), b.tolist()) == ([3, 3, 3], [1, 2, 3])
    scaled = torch._foreach_mul([a, b], 2.0)
    assert [t.device for t in scaled] == [ZERO, ONE]
    made = (
        torch.zeros_like(b, device="remora:0"),
        b.new_ones(2, device="remora:0"),
        torch.rand_like(b, device=ZERO),
    )
    assert {t.device for t in made} == {ZERO}
    assert (made[0] + a).tolist() == [3, 3, 3]
    assert b.type_as(a).device == ZERO


def test_a_row_that_fails_names_its_line_and_both_devices_go_on(both):
    table, held = torch.ones(4, 8, device="remora:1"), torch.arange(3, device="remora:0")
    bad = torch.nn.functional.embedding((held + 3).to("remora:1"), table)
    with pytest.raises((IndexError, ExecutorError), match=r"test_explicit\.py"):
        (bad * 2).to("remora:0").sum().item()
    assert table.sum().item() == 32
    assert (held + 1).tolist() == [1, 2, 3]


# -- random numbers


def test_each_device_draws_as_a_lone_executor_does(both):
    torch.manual_seed(7)
    expected = [torch.rand(5), torch.randn(3), torch.nn.functional.dropout(torch.ones(8), 0.5)]
    torch.manual_seed(7)
    draws: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for index in (0, 1):
        draws[index].append(torch.rand(5, device=f"remora:{index}"))
    for index in (1, 0):  # in any order: none draws from the other's
        draws[index].append(torch.randn(3, device=f"remora:{index}"))
        draws[index].append(torch.nn.functional.dropout(torch.ones(8, device=f"remora:{index}"), 0.5))
    for found in draws.values():
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


def test_seeds_and_states_are_of_each_device(both):
    torch.manual_seed(1)
    with torch.remora.device(1):
        torch.remora.manual_seed(2)
    assert (
        torch.remora.default_generators[0].initial_seed(),
        torch.remora.default_generators[1].initial_seed(),
    ) == (
        1,
        2,
    )
    state = torch.remora.get_rng_state("remora:1")
    first = torch.rand(4, device="remora:1")
    assert torch.equal(first.cpu(), torch.rand(4, generator=torch.Generator().manual_seed(2)))
    torch.remora.set_rng_state(state, 1)
    assert torch.equal(torch.rand(4, device="remora:1").cpu(), first.cpu())
    torch.remora.set_rng_state(torch.Generator().manual_seed(2).get_state(), "remora:0")
    assert torch.equal(torch.rand(4, device="remora:0").cpu(), first.cpu())
    states = torch.remora.get_rng_state_all()
    drawn = [torch.rand(2, device=d).cpu() for d in (ZERO, ONE)]
    torch.remora.set_rng_state_all(states)
    assert all(torch.equal(torch.rand(2, device=d).cpu(), x) for d, x in zip((ZERO, ONE), drawn, strict=True))
    torch.remora.manual_seed_all(9)
    assert torch.equal(torch.rand(2, device=ZERO).cpu(), torch.rand(2, device=ONE).cpu())
    with torch.random.fork_rng(devices=[0, 1], device_type="remora"):
        inside = torch.rand(2, device=ONE).cpu()
    assert torch.equal(torch.rand(2, device=ONE).cpu(), inside)


def test_generators_belong_to_a_device(both):
    generators = [torch.Generator(f"remora:{index}").manual_seed(5) for index in (0, 1, 1)]
    expected = torch.randperm(9, generator=torch.Generator().manual_seed(5))
    for generator in generators:
        assert torch.equal(torch.randperm(9, generator=generator, device=generator.device).cpu(), expected)
    assert [generator.device for generator in generators] == [ZERO, ONE, ONE]
    assert generators[1].clone_state().device == ONE
    with pytest.raises(RuntimeError, match="Expected a generator of remora:0 but found one of remora:1"):
        torch.rand(2, generator=generators[1], device="remora:0")
    with pytest.raises(RuntimeError, match="Expected a generator of remora:1 but found one of remora:0"):
        torch.empty(2, device="remora:1").normal_(generator=generators[0])


# -- streams, events, the default device


def test_events_are_of_a_device(both):
    x = torch.ones(200, 200, device="remora:1")
    with torch.remora.device(1):
        start, end = torch.remora.Event(enable_timing=True), torch.remora.Event(enable_timing=True)
        start.record()
        x @ x
        end.record()
    assert start.elapsed_time(end) > 0
    assert end.device == ONE
    other = torch.remora.Event(enable_timing=True)
    other.record(torch.remora.current_stream("remora:0"))
    with pytest.raises(ValueError, match="on one device, and these are on remora:1 and remora:0"):
        start.elapsed_time(other)
    stream = torch.Stream(device="remora:1")
    assert stream.device == ONE
    with stream:
        assert torch.remora.current_stream(1) == stream
        assert torch.remora.current_stream(0) == torch.remora.default_stream(0)
    assert torch.remora.current_stream(1) == torch.remora.default_stream(1) != torch.remora.default_stream(0)
    bad = torch.nn.functional.embedding(torch.tensor([7]).to("remora:1"), x[:2])
    stream.record_event(end)
    with pytest.raises((IndexError, ExecutorError), match=r"test_explicit\.py"):
        end.synchronize()
    del bad


def test_a_default_device_with_another_current_one(both):
    try:
        torch.set_default_device("remora:1")
        assert torch.ones(2).device == ONE
        torch.remora.set_device(1)
        torch.set_default_device("remora")
        assert torch.ones(2).device == ONE
        torch.remora.set_device(0)
        assert torch.ones(2).device == ZERO
    finally:
        torch.set_default_device(None)
    assert torch.ones(2).device.type == "cpu"
