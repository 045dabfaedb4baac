"""`remora bench decode --rtt`: what it takes from stamps, which tokens end a sequence, and how it judges."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import remora
from remora.bench import loops, run_ahead_bars, ways
from remora.bench.ceiling import check_not_before, weights_nbytes
from remora.bench.harness import Impossible, Report
from remora.bench.models import gpt2, llama
from remora.bench.run_ahead import FULL, QUICK, asked, last_new
from remora.bench.run_ahead_bars import GPT2, LLAMA, THIN
from remora.bench.ways import LOCAL, First, Generated, Looped, Way
from remora.errors import UsageError

NEAR, FAR = Way(0.0, True), Way(50.0, True)
NEAR_OFF, FAR_OFF = Way(0.0), Way(50.0)
ROUND_TRIPS = {0.0: 0.02, 50.0: 50.5}


def generated(ms: float, cpu_ms: float = 1.0, tokens: tuple[int, ...] = (1, 2, 3), **spent: Any) -> Generated:
    return Generated(list(tokens), 60.0, ms, cpu_ms, 40.0, spent)


def first(ms: float, token: int = 3) -> First:
    return First(ms, [token], {"round_trips": 2})


def bars(report: Report) -> dict[str, tuple[float, bool]]:
    return {bar.name: (bar.value, bar.ok) for bar in report.bars}


# -- what a trial says


def test_the_steady_part_is_a_mean_from_a_quarter_on() -> None:
    """Eight tokens; from the third stamp on two come at once, then a pause: a median would hide the pause."""
    walls = [0.0, 5.0, 6.0, 6.0, 8.0, 8.0, 10.0, 10.0]
    stamps = [
        (wall, wall / 2, {"bytes_sent": 100.0 * at, "bytes_received": 10.0 * at, "depth": 4.0})
        for at, wall in enumerate(walls)
    ]
    assert ways.measured(stamps) == {"steady_ms": 800.0, "steady_cpu_ms": 400.0, "nbytes": 110.0}
    with pytest.raises(ValueError, match="1 tokens have no steady part"):
        ways.measured(stamps[:1])


def test_spent_subtracts_what_grows_and_keeps_what_stands() -> None:
    before = {"speculated": 10, "depth": 2, "capture_route": "lazy"}
    after = {"speculated": 15, "wasted": 1, "depth": 8, "capture_route": "guarded"}
    assert ways.spent(before, after) == {
        "speculated": 5, "wasted": 1, "depth": 8, "capture_route": "guarded"
    }  # fmt: skip


def test_counters_are_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = SimpleNamespace(bytes_sent=3, bytes_received=4, round_trips=1, ops=9, speculated=0)
    monkeypatch.setattr(remora, "stats", lambda: stats)
    assert ways.counters() == {"speculated": 0, "bytes_sent": 3, "bytes_received": 4, "round_trips": 1}


def test_run_ahead_is_never_measured_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(remora, "connect", lambda url: asked.append(url))
    ways.connect("http://a", False)
    with pytest.raises(UsageError, match="no run-ahead"):
        ways.connect("http://a", True)
    monkeypatch.setattr(remora, "connect", lambda url, run_ahead: asked.append((url, run_ahead)))
    ways.connect("http://a", True)
    ways.connect("http://a", False)
    assert asked == ["http://a", ("http://a", True), ("http://a", False)]


# -- what is made beforehand


def test_a_sequence_ends_with_a_token_that_is_new_late() -> None:
    assert last_new([5, 5, 6, 7, 6, 8, 8], 2) == 5
    assert last_new([5, 5, 6, 7, 6, 5, 5], 4) is None
    assert last_new([], 0) is None


def test_turns_are_apart_and_not_regular() -> None:
    rng = random.Random(0)
    found = [loops.turns(60, 3, rng) for _ in range(50)]
    for places in found:
        gaps = [after - before for before, after in zip([0, *places], [*places, 60], strict=True)]
        assert min(gaps) >= loops.GAP
    assert len({tuple(places) for places in found}) > 40
    with pytest.raises(ValueError, match="3 turns do not fit into 31"):
        loops.turns(31, 3, rng)


def test_turning_computes_what_the_straight_loop_does_and_wandering_does_not_repeat() -> None:
    assert torch.equal(loops.turning("cpu", 12), loops.turning("cpu", 12, {3, 7}))
    assert torch.equal(loops.wandering("cpu", 12, 5), loops.wandering("cpu", 12, 5))
    assert not torch.equal(loops.wandering("cpu", 12, 5), loops.wandering("cpu", 12, 6))


def test_the_ceiling_counts_a_tied_weight_once_and_no_embedding_that_is_looked_up() -> None:
    tied = gpt2(1, 16, 2, 100)
    positions = tied.transformer.wpe.weight
    assert weights_nbytes(tied) == sum(p.nbytes for p in tied.parameters()) - positions.nbytes
    untied = llama(1, 16, 2, 1, 32, 100)
    embedding = untied.model.embed_tokens.weight
    assert weights_nbytes(untied) == sum(p.nbytes for p in untied.parameters()) - embedding.nbytes


def test_nothing_comes_before_it_can() -> None:
    check_not_before("a token", 49.9, 50.0)
    with pytest.raises(Impossible, match="a token took 40 ms, and cannot in less than 50"):
        check_not_before("a token", 40.0, 50.0)


# -- how it is judged


def test_ratios_are_of_trials_that_took_turns_and_only_run_ahead_has_bars() -> None:
    report = Report("x")
    trials = {
        LOCAL: [generated(ms) for ms in (10.0, 20.0, 40.0)],
        NEAR_OFF: [generated(ms) for ms in (30.0, 60.0, 120.0)],
        NEAR: [generated(ms) for ms in (10.0, 20.0, 40.0)],
        FAR: [generated(ms) for ms in (12.5, 25.0, 50.0)],
    }
    run_ahead_bars.judge_decoding(report, THIN, trials, ROUND_TRIPS)
    assert bars(report) == {
        f"{THIN}: generates whose tokens differ from local": (0, True),
        f"{THIN}: ms per token, remote / local, RTT 0 ms": (1.0, True),
        f"{THIN}: ms per token, remote / local, RTT 50 ms": (1.25, False),
    }
    rows = {(row.measure, row.arm): row.median for row in report.rows}
    assert rows[f"{THIN}: ms per token, remote / local", NEAR_OFF.name] == 3.0
    assert rows[f"{THIN}: tokens/s over those at RTT 0 ms", FAR.name] == 0.8

    report = Report("x")
    run_ahead_bars.judge_decoding(report, GPT2, trials, ROUND_TRIPS)
    assert bars(report) == {
        f"{GPT2}: generates whose tokens differ from local": (0, True),
        f"{GPT2}: ms per token, remote / local, RTT 0 ms": (1.0, True),
        f"{GPT2}: tokens/s at RTT 50 ms / 0 ms": (0.8, False),
    }


def test_a_way_that_failed_misses_its_bars() -> None:
    report = Report("x")
    run_ahead_bars.judge_decoding(report, THIN, {LOCAL: [generated(10.0)], NEAR: [], FAR: []}, ROUND_TRIPS)
    assert [bar.ok for bar in report.bars] == [True, False, False]
    report = Report("x")
    run_ahead_bars.judge_decoding(report, LLAMA, {LOCAL: [generated(9.0)], NEAR: []}, ROUND_TRIPS)
    assert bars(report)[f"{LLAMA}: client CPU ms per token, RTT 0 ms"][1] is False
    report = Report("x")
    run_ahead_bars.judge_ends(report, {NEAR: [], FAR: []}, [[1, 2]])
    run_ahead_bars.judge_turns(report, {FAR: []}, {FAR: []}, 2, ROUND_TRIPS)
    run_ahead_bars.judge_wandering(report, {NEAR: [], NEAR_OFF: []})
    run_ahead_bars.judge_first_tokens(report, GPT2, {LOCAL: [first(5.0)], NEAR: [], FAR: []}, ROUND_TRIPS)
    of_results = [bar for bar in report.bars if "differ" in bar.name]
    assert all(bar.ok for bar in of_results)
    assert not any(bar.ok for bar in report.bars if bar not in of_results)


def test_fewer_tokens_are_compared_and_other_ones_found() -> None:
    report = Report("x")
    trials = {
        LOCAL: [generated(9.0)],
        NEAR_OFF: [generated(9.0, tokens=(1, 2)), generated(9.0, tokens=(1, 3))],
    }
    run_ahead_bars.judge_decoding(report, LLAMA, trials, ROUND_TRIPS)
    assert bars(report)[f"{LLAMA}: generates whose tokens differ from local"] == (1, False)


def test_what_cannot_be_true_ends_the_run() -> None:
    sooner = {LOCAL: [generated(9.0)], FAR_OFF: [generated(20.0)]}
    with pytest.raises(Impossible, match=r"no run-ahead, RTT 50 ms: a token took 20 ms"):
        run_ahead_bars.judge_decoding(Report("x"), GPT2, sooner, ROUND_TRIPS)
    ahead = {LOCAL: [generated(9.0)], NEAR_OFF: [generated(20.0, speculated=3)]}
    with pytest.raises(Impossible, match="3 programs ran ahead"):
        run_ahead_bars.judge_decoding(Report("x"), GPT2, ahead, ROUND_TRIPS)
    with pytest.raises(Impossible, match="first token at RTT 50 ms took 30 ms"):
        run_ahead_bars.judge_first_tokens(Report("x"), GPT2, {LOCAL: [], FAR: [first(30.0)]}, ROUND_TRIPS)


def test_routes_are_told_by_their_share() -> None:
    report = Report("x")
    routed = [generated(9.0, capture_route=route) for route in ("guarded", "guarded", "lazy")]
    run_ahead_bars.judge_decoding(report, LLAMA, {LOCAL: [generated(9.0)], NEAR: routed}, ROUND_TRIPS)
    rows = {row.unit: (row.arm, row.median, row.trials) for row in report.rows if "route" in row.measure}
    assert rows == {"guarded": (NEAR.name, 1.0, 3), "lazy": (NEAR.name, 0.0, 3)}


def test_a_wrong_guess_is_what_a_turn_adds() -> None:
    straight = {
        LOCAL: [Looped(9.0, "a")],
        FAR: [
            Looped(1000.0, "a", {"wasted": 4, "depth": 16}),
            Looped(1200.0, "a", {"wasted": 4, "depth": 16}),
        ],
    }
    turned = {
        LOCAL: [Looped(9.0, "a")],
        FAR: [
            Looped(1101.0, "a", {"wasted": 34, "depth": 8}),
            Looped(1301.0, "b", {"wasted": 34, "depth": 8}),
        ],
    }
    report = Report("x")
    run_ahead_bars.judge_turns(report, straight, turned, 2, ROUND_TRIPS)
    found = bars(report)
    assert found["a wrong guess: round trips lost, RTT 50 ms"] == (1.0, True)
    assert found["a wrong guess: programs run in vain, RTT 50 ms"] == (15.0, True)
    assert found["a loop that turns: ways whose results differ from local"] == (2, False)


def test_no_slower_means_that_the_interval_reaches_down_to_one() -> None:
    def judged(on: list[float]) -> tuple[float, bool]:
        report = Report("x")
        off = [Looped(100.0, "a")] * len(on)
        run_ahead_bars.judge_wandering(
            report, {LOCAL: off, NEAR_OFF: off, NEAR: [Looped(ms, "a") for ms in on]}
        )
        return bars(report)["a loop of random programs, run-ahead / none, low end of the interval, RTT 0 ms"]

    assert judged([98.0, 110.0, 112.0]) == (0.98, True)
    assert judged([103.0, 110.0, 112.0]) == (1.03, False)


def test_ends_waste_nothing_usually() -> None:
    report = Report("x")
    ends = [[1, 2], [1, 4, 5], [7]]
    trials = [
        generated(9.0, tokens=tuple(tokens), wasted=wasted)
        for tokens, wasted in zip(ends, (0, 3, 0), strict=True)
    ]
    run_ahead_bars.judge_ends(report, {FAR: trials}, ends)
    assert [bar.ok for bar in report.bars] == [True, True]
    run_ahead_bars.judge_ends(report, {FAR: trials[::-1]}, ends)
    assert [bar.ok for bar in report.bars] == [True, True, False, True]


def test_a_mode_that_raised_differs() -> None:
    report = Report("x")
    found = {
        ("GPT-2", "greedy"): {LOCAL: [1], NEAR_OFF: [1], NEAR: [1], FAR: [2]},
        ("GPT-2", "beam"): {LOCAL: [1], NEAR_OFF: [1], NEAR: None, FAR: [1]},
        ("Llama", "beam"): {LOCAL: None, NEAR_OFF: None, NEAR: [1], FAR: [1]},
    }
    run_ahead_bars.judge_modes(report, found)
    assert bars(report) == {
        "modes whose tokens differ from local, run-ahead": (4, False),
        "modes whose tokens differ from local, no run-ahead": (1, False),
    }


def test_the_first_token_may_take_local_and_a_round_trip() -> None:
    report = Report("x")
    firsts = {LOCAL: [first(ms) for ms in (40.0, 50.0, 60.0)], NEAR: [first(79.0)], FAR: [first(140.0)]}
    run_ahead_bars.judge_first_tokens(report, GPT2, firsts, ROUND_TRIPS)
    same, (near, ok), (far, late) = bars(report).values()
    assert same == (0, True)
    assert (near, ok) == (pytest.approx(28.98), True)
    assert (far, late) == (pytest.approx(39.5), False)
    run_ahead_bars.judge_first_tokens(report, GPT2, firsts | {NEAR: [first(79.0, token=4)]}, ROUND_TRIPS)
    assert bars(report)[f"{GPT2}: first tokens that differ from local"] == (1, False)


def test_ways_have_names_of_their_own_and_few_tokens_are_enough_to_be_steady() -> None:
    names = [way.name for way in (LOCAL, NEAR, NEAR_OFF, FAR, FAR_OFF)]
    assert names == [
        "local", "run-ahead, RTT 0 ms", "no run-ahead, RTT 0 ms", "run-ahead, RTT 50 ms", "no run-ahead, RTT 50 ms"
    ]  # fmt: skip
    assert min(FULL.few, QUICK.few) >= 8


@pytest.mark.parametrize("thorough", [False, True])
def test_a_model_is_run_in_every_way_that_its_bars_ask_for(thorough: bool) -> None:
    rtts = (0.0, 10.0, 50.0)
    thin, deep, large = (asked(name, rtts, thorough) for name in (THIN, LLAMA, GPT2))
    assert thin[0] == deep[0] == large[0] == LOCAL
    assert {NEAR, FAR, FAR_OFF} <= set(thin)
    assert (len(thin) == 7) is thorough
    assert deep == ([LOCAL, NEAR, FAR] if thorough else [LOCAL, NEAR])
    assert {NEAR, FAR} <= set(large)
    assert asked(GPT2, (5.0,), True) == [LOCAL, Way(5.0), Way(5.0, True)]
    assert asked(LLAMA, (5.0,), True) == [LOCAL, Way(5.0, True)]
