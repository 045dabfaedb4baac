"""Memory: what is used, what is given back, and what happens when there is no more."""

from __future__ import annotations

import gc

import pytest
import torch
from executor_process import executor_process, status_until

import remora
from remora.errors import OutOfMemory, Refused

MIB = 1 << 20


@pytest.fixture(scope="module")
def small():
    with executor_process("--memory", "256MiB") as executor:
        yield executor


@pytest.fixture
def session(small):
    remora.connect(small.url)
    yield small
    remora.disconnect()


def used(executor):
    torch.remora.synchronize()
    return executor.status().used_nbytes


def test_a_tensor_beyond_the_limit_says_what_was_asked_and_who_holds_what(session):
    kept = torch.ones(16 * MIB // 4, device="remora")
    big = torch.zeros(300 * MIB // 4, device="remora")
    with pytest.raises(MemoryError) as caught:
        big.sum().item()
    assert isinstance(caught.value, OutOfMemory)
    text = str(caught.value)
    assert f"asked for {300 * MIB:,} bytes" in text
    assert f"local/user {16 * MIB:,} bytes" in text
    assert f"limit {256 * MIB:,} bytes" in text
    assert f"{__file__}:" in text
    assert kept.sum().item() == 16 * MIB // 4
    assert torch.ones(MIB, device="remora").sum().item() == MIB


def test_an_absurd_size_is_an_error_and_not_the_end_of_the_worker(session):
    huge = torch.empty(1 << 40, device="remora")
    with pytest.raises(OutOfMemory, match="asked for"):
        huge[0].item()
    assert session.status().workers_started == 1
    assert torch.ones(3, device="remora").sum().item() == 3


def test_many_values_run_into_the_limit_as_one_does(session):
    held = []

    def fill():
        for _ in range(40):
            held.append(torch.ones(16 * MIB // 4, device="remora"))
            held[-1][0].item()

    with pytest.raises(OutOfMemory):
        fill()
    assert 8 <= len(held) <= 17  # the last one was never made
    del held[:]
    assert torch.ones(64 * MIB // 4, device="remora").sum().item() == 16 * MIB


def test_used_bytes_go_down_when_tensors_die(session):
    x = torch.ones(32 * MIB // 4, device="remora")
    views = [x[i:] for i in range(5)]
    assert x[3].item() == 1
    status_until(session, lambda status: status.used_nbytes >= 32 * MIB)
    del x
    torch.ones(1, device="remora").item()
    assert used(session) >= 32 * MIB  # the views hold it
    del views
    torch.ones(1, device="remora").item()
    status_until(session, lambda status: status.used_nbytes < MIB)


def test_uploads_make_room_for_later_ones(session):
    """More than fits in all, but not at once: what nothing uses any more goes."""
    for i in range(12):
        x = torch.full((48 * MIB // 4,), float(i)).to("remora")
        assert x[-1].item() == i
        del x
    gc.collect()
    assert torch.ones(1, device="remora").item() == 1


def test_equal_bytes_again_are_not_sent_again(session):
    source = torch.arange(MIB, dtype=torch.float32)
    a = source.to("remora")
    assert a[7].item() == 7
    before = remora.stats()
    b = source.to("remora")
    b.add_(1)  # its own copy
    assert (a[7].item(), b[7].item()) == (7, 8)
    del a, b
    torch.ones(1, device="remora").item()
    c = source.to("remora")
    assert c[7].item() == 7
    assert (remora.stats() - before).weights_bytes == 0


def test_an_upload_that_cannot_fit_is_refused_with_the_arithmetic(session):
    with pytest.raises(Refused, match=r"asked for .* bytes; free .* of 268435456"):
        torch.zeros(300 * MIB, dtype=torch.uint8).to("remora")
    assert torch.ones(3, device="remora").sum().item() == 3


def test_all_is_gone_when_the_session_ends(small):
    remora.connect(small.url)
    x = torch.ones(16 * MIB // 4, device="remora")
    y = torch.full((16 * MIB,), 3, dtype=torch.uint8).to("remora")
    assert (x[0] + y[0]).item() == 4
    status_until(small, lambda status: status.used_nbytes >= 32 * MIB)
    remora.disconnect()
    status = status_until(small, lambda status: status.sessions == 0)
    assert status.used_nbytes <= 256 * MIB  # blobs stay as a cache, values do not
