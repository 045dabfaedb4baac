"""The cost model of the seed's arms, and where gains begin."""

from __future__ import annotations

import pytest

from remora.bench.gains import Twin, Wire, pipelined_s, saved, smallest, waiting_s


def test_a_message_takes_its_bytes_over_the_rate_less_what_passes_at_once() -> None:
    wire = Wire(1e6, burst_nbytes=100_000)
    assert wire.seconds(500_000, pause_s=1.0) == pytest.approx(0.4)
    assert wire.seconds(500_000, pause_s=0.05) == pytest.approx(0.45)  # the shaper has saved up 50,000
    assert wire.seconds(50_000, pause_s=1.0) == 0
    assert Wire(0.0).seconds(1e9, 0.0) == 0


def test_the_seeds_own_numbers_come_out_of_its_own_terms() -> None:
    """0.375 MiB at 15 ms per MB, and 0.48 ms beside."""
    wire = Wire(1e6 / 0.015)
    twin = Twin(seconds=0.48e-3, nbytes=0, kernel_s=0.1e-3)
    assert waiting_s(twin, 393_216, 0.1e-3, wire) == pytest.approx(6.38e-3, rel=0.01)
    assert waiting_s(twin, 0, 0.1e-3, wire) == pytest.approx(0.48e-3)


def test_a_twins_own_bytes_and_kernels_are_not_counted_twice() -> None:
    wire = Wire(1e6)
    twin = Twin(seconds=0.030, nbytes=10_000, kernel_s=0.005)  # 10 ms of wire, 5 of kernels, 15 its own
    assert waiting_s(twin, 100_000, 0.007, wire) == pytest.approx(0.015 + 0.100 + 0.007)


def test_of_a_pipeline_the_slower_end_counts_and_the_other_ones_part_of_one_message() -> None:
    twin = Twin(seconds=0.62, nbytes=0, kernel_s=0.2, client_s=0.5, busy_s=0.3, messages=0.05)
    # 100 steps are 5 messages: 0.5 + 0.3 / 5 = 0.56, so 0.06 of the twin's step is its own
    assert pipelined_s(twin, 0.2, 100) == pytest.approx(0.62)
    assert pipelined_s(twin, 0.9, 100) == pytest.approx(0.06 + 1.0 + 0.5 / 5)
    assert pipelined_s(twin, 0.9, 5) == pytest.approx(1.0 + 0.5)  # one message: nothing overlaps


def test_what_clocks_counted_twice_makes_nothing_of_a_step_negative() -> None:
    twin = Twin(seconds=0.3, nbytes=0, kernel_s=0.0, client_s=0.5, busy_s=0.3, messages=0.1)
    assert pipelined_s(twin, 0.0, 100) == pytest.approx(0.5 + 0.03)


def test_saved_and_from_which_size_on() -> None:
    assert saved(6.38, 0.40) == pytest.approx(0.937, abs=1e-3)
    assert saved(1.0, 2.0) == -1.0
    shares = {128: 0.4, 1024: 0.55, 8192: 0.93, 32768: 0.91}
    assert smallest(shares, 0.5) == 1024
    assert smallest(shares, 0.9) == 8192
    assert smallest(shares, 0.95) is None
    assert smallest({128: 0.6, 1024: 0.2}, 0.5) is None  # from there on, not once
