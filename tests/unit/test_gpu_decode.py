"""The GPU script's pure parts; `--device cpu --tiny` runs the rest of it."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from remora.bench.harness import Report

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture(scope="module")
def decode():
    path = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("gpu_decode", FOLDER / "decode.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["gpu_decode"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path[:] = path
        for name in ("gpu_decode", "shapes"):
            sys.modules.pop(name, None)


def bench(decode: Any, **args: Any) -> Any:
    given = {"budget_s": 100.0, "device": "cuda:0", "tiny": False} | args
    return decode.Bench(Namespace(**given), Report("x"), {0.0: "near", 50.0: "far"}, {0.0: 0.1, 50.0: 50.5})


def test_runs_are_apart_by_their_furthest_step(decode: Any) -> None:
    first = torch.zeros(3, 4)
    second = torch.tensor([[0.0, 0, 0, 0], [0, 0.5, 0, -0.25], [0, 0, -1.5, 0]])
    found = decode.apart(first, second)
    assert found == {
        "first_step_equal": True, "equal_steps": 1, "steps": 3, "max_abs": 1.5, "median_abs": 0.5
    }  # fmt: skip
    assert decode.furthest([decode.apart(first, first), found]) == found


def test_spreads_compare_as_many_pairs_with_eager_as_eager_with_itself(decode: Any) -> None:
    eager = [torch.full((2, 1), at * 1.0) for at in range(3)]
    own = decode.spread(eager, eager)
    assert (own["pairs"], own["all_pairs"], own["max_abs"]) == (3, [1.0, 1.0, 2.0], 2.0)
    ours = decode.spread([torch.full((2, 1), 1.0)] * 3, eager)
    assert (ours["pairs"], ours["all_pairs"], ours["median_of_pairs"]) == (3, [0.0, 1.0, 1.0], 1.0)
    assert not ours["first_step_equal"]


def test_a_part_without_time_is_left_out_and_named(decode: Any) -> None:
    one = bench(decode, budget_s=10.0)
    assert one.has_time("short", 5)
    assert not one.has_time("long", 20)
    assert one.left_out == ["long"]


def test_a_shared_model_moves_without_the_one_it_came_from(decode: Any) -> None:
    model = decode.make("gpt2", "cpu", tiny=True)
    again = decode.sharing(model)
    assert again.lm_head.weight is again.transformer.wte.weight is not model.lm_head.weight
    assert again.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()
    again.to(torch.float32)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert torch.equal(again.lm_head.weight, model.lm_head.weight.float())


def test_exact_is_equal_at_first_and_within_eagers_own_distance(decode: Any) -> None:
    one = bench(decode)
    own = {"max_abs": 0.08}
    decode.judge_exact(one, "a", {"against_eager": {"first_step_equal": True, "max_abs": 0.08}}, own)
    decode.judge_exact(one, "b", {"against_eager": {"first_step_equal": False, "max_abs": 0.09}}, own)
    assert [bar.ok for bar in one.report.bars] == [True, True, False, False]


def test_times_are_judged_at_each_round_trip_and_one_left_out_misses(decode: Any) -> None:
    def judged(far: dict[str, Any]) -> dict[str, bool]:
        one = bench(decode)
        result = {
            "local_eager": {"peak_bytes": 100, "ttft_ms": 38.0},
            "remora": {"0": {"ms_per_token": 8.0, "peak_bytes": 104}, **far},
            "first_token_ms": {"0": [60.0, 66.0, 90.0], "50": [120.0, 119.0, 118.0]},
        }
        decode.judge_times(one, "llama-8b", result)
        return {bar.name.removeprefix("llama-8b, exact"): bar.ok for bar in one.report.bars}

    assert judged({"50": {"ms_per_token": 8.2, "peak_bytes": 110}}) == {
        ", RTT 0 ms: ms per token": True,
        ", RTT 0 ms: peak memory over eager's": True,
        ", RTT 0 ms: first token, ms over eager's and a round trip": True,
        ", RTT 50 ms: ms per token": True,
        ", RTT 50 ms: peak memory over eager's": False,
        ", RTT 50 ms: first token, ms over eager's and a round trip": False,
        ": tokens/s at the longest round trip over the shortest": True,
    }
    inexact = bench(decode)
    decode.judge_tier(
        inexact,
        "llama-8b",
        "inexact",
        {"local_eager": {"peak_bytes": 1, "ttft_ms": 1}, "remora_inexact": {"0": {"ms_per_token": 7.1}}},
    )
    assert [bar.bar for bar in inexact.report.bars if bar.name.endswith("0 ms: ms per token")] == [7.0, 7.0]
    left_out = judged({})
    assert not left_out[", RTT 50 ms: ms per token"]
    assert not left_out[": tokens/s at the longest round trip over the shortest"]


def test_times_of_a_cpu_or_a_tiny_model_mean_nothing(decode: Any) -> None:
    assert bench(decode).timed
    assert not bench(decode, device="cpu").timed
    assert not bench(decode, tiny=True).timed
