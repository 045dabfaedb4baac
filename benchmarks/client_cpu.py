"""Client CPU per decode token, calls captured op by op and as a whole, in one run; the last line is JSON.

    python benchmarks/client_cpu.py [gpt2|llama] [TOKENS] [ROUNDS]

Tiny widths and real numbers of layers, against an executor that `remora.connect()` finds or starts. Milliseconds of
the recording thread (thread_time), median over tokens and rounds; the token's work on the executor is not in it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

import remora
from remora.bench import models

MAKE = {
    "gpt2": lambda: models.gpt2(layers=12, width=48, heads=4, vocabulary=128),
    "llama": lambda: models.llama(layers=32, width=32, heads=4, kv_heads=2, inner=64, vocabulary=128),
}
FIRST = 4  # tokens of a round that are not counted: prefill, and places that are new


class Clock(BaseStreamer):
    """The thread's CPU time at each token."""

    def __init__(self) -> None:
        self.at_s: list[float] = []

    def put(self, value: Any) -> None:
        self.at_s.append(time.thread_time())

    def end(self) -> None: ...

    def per_token_ms(self) -> list[float]:
        return [1e3 * (b - a) for a, b in zip(self.at_s[FIRST:], self.at_s[FIRST + 1 :], strict=False)]


def main(kind: str = "gpt2", tokens: int = 60, rounds: int = 5) -> None:
    torch.set_num_threads(1)
    local, there = MAKE[kind](), MAKE[kind]().to("remora")
    ids = models.prompt(9, batch=1, vocabulary=128)
    options = {"max_new_tokens": tokens, "do_sample": False}
    expected = local.generate(ids, **options)

    def one_round() -> list[float]:
        clock = Clock()
        got = there.generate(ids.to("remora"), streamer=clock, **options)
        assert torch.equal(got.cpu(), expected), "not the tokens of the local CPU"
        return clock.per_token_ms()

    lazy = one_round()[:10]  # before anything is traced
    start_s = time.perf_counter()
    remora.wait_warm(300)
    waited_s = time.perf_counter() - start_s
    whole = [ms for _ in range(rounds) for ms in one_round()]
    assert remora.stats().capture_route == "guarded"
    found = {
        "kind": kind,
        "lazy_ms": round(statistics.median(lazy), 2),
        "whole_ms": round(statistics.median(whole), 2),
        "best_whole_ms": round(min(whole), 2),
        "waited_s": round(waited_s, 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
