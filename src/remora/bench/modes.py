"""Tokens of every mode of `generate`, remote against local CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from remora.bench import models
from remora.bench.generation import Collect, streamed_from_thread
from remora.bench.harness import Report

VOCABULARY = 512
Mode = Callable[[Any, str, int], list[int]]  # (model, device, tokens) to what it produced


def _ids(device: str, batch: int = 1) -> torch.Tensor:
    return models.prompt(12, batch, VOCABULARY).to(device)


def _options(**options: Any) -> Mode:
    def mode(model: Any, device: str, n: int) -> list[int]:
        torch.manual_seed(7)
        return model.generate(_ids(device), max_new_tokens=n, **options).flatten().tolist()

    return mode


def _padded(model: Any, device: str, n: int) -> list[int]:
    ids, mask = _ids("cpu", batch=3), torch.ones(3, 12, dtype=torch.int64)
    for row, pad in enumerate((0, 5, 9)):
        ids[row, :pad] = mask[row, :pad] = 0
    options = {"attention_mask": mask.to(device), "max_new_tokens": n, "do_sample": False}
    return model.generate(ids.to(device), **options).flatten().tolist()


def _streamer(model: Any, device: str, n: int) -> list[int]:
    streamer = Collect()
    model.generate(_ids(device), max_new_tokens=n, do_sample=False, streamer=streamer)
    return streamer.seen


def _streamer_in_thread(model: Any, device: str, n: int) -> list[int]:
    ids = _ids(device)
    return streamed_from_thread(
        lambda streamer: model.generate(ids, max_new_tokens=n, do_sample=False, streamer=streamer)
    )


MODES: dict[str, Mode] = {
    "greedy": _options(do_sample=False),
    "sampled": _options(do_sample=True, top_k=50, top_p=0.9, temperature=0.8),
    "beam": _options(num_beams=3, do_sample=False),
    "left-padded batch": _padded,
    "static cache": _options(do_sample=False, cache_implementation="static", disable_compile=True),
    "streamer": _streamer,
    "streamer in a thread": _streamer_in_thread,
}


def families() -> dict[str, Any]:
    """The models that go through all modes."""
    return {
        "GPT-2": models.gpt2(3, 48, 12, VOCABULARY, models.VARIED),
        "Llama": models.llama(3, vocabulary=VOCABULARY, spread=models.VARIED),
    }


def measure(report: Report, quick: bool) -> None:
    """The bar on tokens: how many modes differ from local. A mode that raises differs."""
    n, repeats = (12, 1) if quick else (32, 2)
    differ = 0
    for family, local in families().items():
        remote = copy.deepcopy(local).to("remora")
        for name, mode in MODES.items():
            expected = mode(local, "cpu", n)
            same = all(_same(report, f"{family} {name}", mode, remote, n, expected) for _ in range(repeats))
            differ += not same
            report.row(f"tokens equal to local, {family}", name, "equal", [float(same)])
    report.bar("modes whose tokens differ from local", differ, "==", 0)


def _same(report: Report, what: str, mode: Mode, remote: Any, n: int, expected: list[int]) -> bool:
    try:
        got = mode(remote, "remora", n)
    except Exception as error:
        report.say(f"{what}: {type(error).__name__}: {error}")
        return False
    if got != expected:
        report.say(f"{what}: expected {expected}, got {got}")
    return got == expected
