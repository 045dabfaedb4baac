"""Decoders: a cache that grows, prefill alone, many thin layers, and a model that no executor holds by itself."""

# B batch, T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from remora.bench import models
from remora.bench.workloads.workload import Build, Outputs, Running, Workload, integers


class _Decoding:
    """Greedy decode by hand, as a user writes it: one token read a step, everything else stays where it is."""

    def __init__(self, model: Any, device: str, prompt_BT: torch.Tensor, tokens: int) -> None:
        from transformers import DynamicCache

        self.model, self.device, self.tokens = model.to(device), device, tokens
        self.cache: Any = DynamicCache(config=model.config)
        self.length = 0
        self.next_BT = self.feed(prompt_BT)

    @torch.no_grad()
    def feed(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """The token that follows these and all before them, [B, 1]."""
        output = self.model(ids_BT.to(self.device), past_key_values=self.cache, use_cache=True)
        self.length += ids_BT.shape[1]
        return output.logits[:, -1:].argmax(-1)

    def step(self) -> Outputs:
        made = []
        for _ in range(self.tokens):
            self.next_BT = self.feed(self.next_BT)
            made.append(self.next_BT.cpu())
        return made


def _decode(
    model: Callable[[], Any], prompt: int, tokens: int, vocabulary: int, until: int | None = None
) -> Build:
    """until: length at the end of the last trial; what lies between trials is fed as text, untimed."""
    made = model()
    ids_BT = integers(vocabulary, 1, until or prompt, seed=2)

    def build(device: str) -> Running:
        decoding = _Decoding(made, device, ids_BT[:, :prompt], tokens)
        if until is None:
            return Running(decoding.step)

        def prepare(progress: float) -> None:
            start = prompt + int(progress * (until - prompt - tokens))
            if start > decoding.length:
                decoding.next_BT = decoding.feed(ids_BT[:, decoding.length : start])

        return Running(decoding.step, prepare)

    return build


def _gpt2(quick: bool) -> Build:
    if quick:
        return _decode(lambda: models.gpt2(layers=2, vocabulary=4096), 512, 2, 4096, until=560)
    return _decode(models.gpt2, 512, 4, 50257, until=1023)


def _llama(quick: bool) -> Build:
    size = {
        "layers": 2 if quick else 6,
        "width": 256,
        "heads": 8,
        "kv_heads": 4,
        "inner": 688,
        "vocabulary": 4096,
    }
    return _decode(lambda: models.llama(**size), 64, 4 if quick else 16, 4096)


def _deep(quick: bool) -> Build:
    return _decode(lambda: models.llama(), 16, 2 if quick else 8, 512)


def _larger(quick: bool) -> Build:
    """One form: what is quicker would fit."""
    return _decode(_larger_model, 32, 4, LARGER_VOCABULARY)


LARGER_VOCABULARY = 8192


def _larger_model() -> Any:
    model = models.llama(18, width=640, heads=10, kv_heads=10, inner=1408, vocabulary=LARGER_VOCABULARY)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            if weight.dim() == 2 and weight.device.type != "meta":
                weight *= 2  # as they are, every token follows itself, and a comparison would see little
    return model


def _prefill(quick: bool) -> Build:
    """The last position's tokens of 8 prompts; all of the logits exist on the executor only."""
    model = models.llama(2 if quick else 6, width=384, heads=6, kv_heads=6, inner=1024, vocabulary=8192)
    prompts_BT = integers(8192, 8, 32 if quick else 96, seed=3)

    def build(device: str) -> Running:
        placed, ids_BT = model.to(device), prompts_BT.to(device)

        @torch.no_grad()
        def step() -> Outputs:
            return [placed(ids_BT, use_cache=False).logits[:, -1].argmax(-1).cpu()]

        return Running(step)

    return build


LARGER_NBYTES = 354_644_480  # its parameters; a test counts them
WORKLOADS = (
    Workload(
        "gpt2-decode",
        "GPT-2 124M, greedy, context 512 to 1023",
        _gpt2,
        "token",
        4,
        2,
        wins="phases: the cache stays",
    ),
    Workload("llama-decode", "a small Llama, greedy, context 64 on", _llama, "token", 16, 4),
    Workload(
        "deep-decode", "32 Llama layers of almost no compute: the client's own cost", _deep, "token", 8, 2
    ),
    Workload(
        "prefill",
        "8 prompts, last position's tokens",
        _prefill,
        "batch",
        wins="outputs returned: 8 tokens, not logits",
    ),
    Workload(
        "larger-than-one",
        "a Llama of 2.3 times an executor's memory",
        _larger,
        "token",
        4,
        4,
        wins="no executor holds it: cut by layers",
        memory_nbytes=int(LARGER_NBYTES / 2.3),
        executors=3,
    ),
)
