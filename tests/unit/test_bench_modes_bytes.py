"""What the published modes must carry, worked out from shapes alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from remora.bench.contest import BETWEEN, DOWN, UP
from remora.bench.mode_arms import DELTA, FULL, HANDLE, MODES, NAIVE, SEMANTIC, Sizes, carries

GPT_J = SimpleNamespace(num_attention_heads=16, hidden_size=4096, num_hidden_layers=28, vocab_size=50400)
LLAMA = SimpleNamespace(
    num_attention_heads=32, num_key_value_heads=8, hidden_size=4096, num_hidden_layers=32, vocab_size=128256
)
SIZES = Sizes(100, 1000, 50_000)


def test_gpt_j_holds_what_the_evaluation_says() -> None:
    sizes = Sizes.of(GPT_J, 2, 0)
    assert sizes.kv_nbytes == 458_752
    assert sizes.logits_nbytes == 100_800


def test_grouped_heads_hold_less() -> None:
    assert Sizes.of(LLAMA, 2, 0).kv_nbytes == 2 * 32 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("mode", "up", "down", "between"),
    [
        (NAIVE, 8 * 12, 3 * 1000, 3 * 50_000),
        (FULL, 8 * 12 + 100 * (10 + 11), 3 * 1000 + 100 * (10 + 11 + 12), 0),
        (DELTA, 8 * 12, 3 * 1000 + 100 * 12, 0),
        (HANDLE, 8 * 12, 3 * 1000, 0),
        (SEMANTIC, 8 * 10, 3 * 8, 0),
    ],
)
def test_a_generate_of_three_tokens_behind_ten(mode: object, up: int, down: int, between: int) -> None:
    said = {carry.direction: carry.nbytes for carry in carries(mode, SIZES, 10, 3)}
    assert said == {UP: up, DOWN: down, BETWEEN: between}


def test_what_is_kept_does_not_travel_so_each_mode_carries_less_than_the_one_before() -> None:
    sizes = Sizes.of(GPT_J, 2, 12_000_000_000)
    totals = [sum(carry.nbytes for carry in carries(mode, sizes, 72, 50)) for mode in MODES]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] / totals[-1] > 1e6
