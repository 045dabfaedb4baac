"""How much of a decode step travels, as real programs: from weights at every call to one token id.

The arms of the published evaluation. Each is greedy decode as a user writes it who keeps that much on the client, or
fetches it; what must then travel follows from the model's shape (`Sizes`).
"""

# B batch (1), T tokens, L layers, H heads, D head dim; ids are [B, T]

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from remora.bench.arms import LOCAL, Arm
from remora.bench.contest import BETWEEN, DOWN, UP, Carries, Entry
from remora.bench.workloads import Build, Outputs, Running

ID_NBYTES = 8
STEP_FRAMING = 2048  # each way, of a step: requests, replies, heads of a bulk body; measured up to 1,100
FIRST_FRAMING = 1 << 15  # each way, of a trial: templates that are new
PUSH_FRAMING = 1024  # of each tensor that goes from executor to executor


@dataclass(frozen=True)
class Sizes:
    """What a model's state takes: of all layers for a token, and of logits for a position."""

    kv_nbytes: int
    logits_nbytes: int
    weights_nbytes: int

    @staticmethod
    def of(config: Any, itemsize: int, weights_nbytes: int) -> Sizes:
        """From a configuration with layers, width and heads; heads of keys may be fewer."""
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_nbytes = 2 * config.num_hidden_layers * kv_heads * head_dim * itemsize
        return Sizes(kv_nbytes, config.vocab_size * itemsize, weights_nbytes)


@dataclass(frozen=True)
class Mode:
    """naive: weights travel at each call, from the executor that keeps them. reads_kv, sends_kv: what of the cache
    comes to the client, and goes there: none, what is new, or all. reads_logits: or the token's id alone."""

    name: str
    reads_kv: str = "none"
    sends_kv: bool = False
    reads_logits: bool = True
    naive: bool = False

    def up_nbytes(self, sizes: Sizes, prompt: int, tokens: int) -> int:
        """Payload of a whole generate, to the executor."""
        ids = ID_NBYTES * (prompt + (tokens - 1 if self.reads_logits else 0))
        return ids + (sizes.kv_nbytes * sum(range(prompt, prompt + tokens - 1)) if self.sends_kv else 0)

    def down_nbytes(self, sizes: Sizes, prompt: int, tokens: int) -> int:
        """Payload of a whole generate, to the client."""
        positions = {
            "none": 0,
            "new": prompt + tokens - 1,
            "all": sum(range(prompt, prompt + tokens)),
        }[self.reads_kv]
        out = sizes.logits_nbytes if self.reads_logits else ID_NBYTES
        return positions * sizes.kv_nbytes + tokens * out

    def between_nbytes(self, sizes: Sizes, tokens: int) -> int:
        """Payload of a whole generate, from executor to executor."""
        return sizes.weights_nbytes * tokens if self.naive else 0


NAIVE = Mode("naive", naive=True)
FULL = Mode("full KV both ways", "all", sends_kv=True)
DELTA = Mode("delta KV", "new")
HANDLE = Mode("handle")
SEMANTIC = Mode("semantic", reads_logits=False)
WARM_UPS = 3  # op by op, as whole calls that are found anew, as they stay
MODES = (NAIVE, FULL, DELTA, HANDLE, SEMANTIC)

Make = Callable[[str], Any]  # the model on a device
Prompts = Callable[
    [int], torch.Tensor
]  # ids by trial, warm-ups first; where bytes count, each another: what an
# executor has had once is not sent again


def build_of(mode: Mode, make: Make, prompts: Prompts, tokens: int) -> Build:
    """One trial is one generate of `tokens` tokens behind the next prompt; its output is their ids."""

    def build(device: str) -> Running:
        numbers = itertools.count()
        decode = (_Naive if mode.naive else _Decode)(
            mode, make("remora:1" if mode.naive else device), device, tokens
        )
        return Running(lambda: decode.generate(prompts(next(numbers))))

    return build


class _Decode:
    """Greedy decode in which the mode's part of the state passes through the client."""

    def __init__(self, mode: Mode, model: Any, device: str, tokens: int) -> None:
        self.mode, self.model, self.device, self.tokens = mode, model, device, tokens
        self.kept: torch.Tensor | None = None  # the client's cache [L, 2, B, H, T, D]

    @torch.no_grad()
    def generate(self, ids: torch.Tensor) -> Outputs:
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=self.model.config)
        following, self.kept, made = ids, None, []
        for _ in range(self.tokens):
            if self.mode.sends_kv and self.kept is not None:
                cache = self._sent(DynamicCache(config=self.model.config))
            out = self.model(
                following.to(self.device), past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            token = out.logits[:, -1:]
            if self.mode.reads_logits:
                token = token.cpu()
            following = token.argmax(-1)
            if self.mode.reads_kv != "none":
                self._read(cache, 0 if self.kept is None else self.kept.shape[-2])
            made.append(following.cpu())
        return [torch.cat(made, 1)]

    def _sent(self, cache: Any) -> Any:
        assert self.kept is not None
        held = self.kept.to(self.device)
        for layer, (keys, values) in enumerate(held):
            cache.update(keys, values, layer)
        return cache

    def _read(self, cache: Any, known: int) -> None:
        since = 0 if self.mode.reads_kv == "all" else known
        pairs = [torch.stack((layer.keys, layer.values))[..., since:, :] for layer in cache.layers]
        new = torch.stack(pairs).cpu()
        self.kept = new if self.kept is None or not since else torch.cat((self.kept, new), -2)


class _Naive:
    """Every call fetches the weights from the executor that keeps them, and computes elsewhere, without a cache."""

    def __init__(self, mode: Mode, model: Any, device: str, tokens: int) -> None:
        self.model, self.tokens = model, tokens

    @torch.no_grad()
    def generate(self, ids: torch.Tensor) -> Outputs:
        made: list[torch.Tensor] = []
        for _ in range(self.tokens):
            kept = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
            fetched = {name: tensor.to("remora:0") for name, tensor in kept.items()}
            options = {"use_cache": False, "logits_to_keep": 1}
            out = torch.func.functional_call(self.model, fetched, (ids.to("remora:0"),), options)
            made.append(out.logits[:, -1:].cpu().argmax(-1))
            ids = torch.cat((ids, made[-1]), 1)
        return [torch.cat(made, 1)]


def plain(make: Make, prompts: Prompts, tokens: int) -> Prompts:
    """The ids of each trial by plain PyTorch on the CPU."""
    decode = _Decode(SEMANTIC, make("cpu"), "cpu", tokens)
    return functools.cache(lambda number: decode.generate(prompts(number))[0])


def entry(
    mode: Mode, make: Make, sizes: Sizes, prompts: Prompts, tokens: int, expected: Prompts | None
) -> Entry:
    """expected: ids of as many tokens or more, by trial; None: they are not compared."""
    return Entry(
        _arm(mode),
        build_of(mode, make, prompts, tokens),
        tokens,
        _reference(expected, tokens),
        carries(mode, sizes, prompts(0).shape[1], tokens),
        warm_ups=1 if mode.naive else WARM_UPS,
        goes_on=True,
    )


def _reference(expected: Prompts | None, tokens: int) -> Callable[[], Outputs] | None:
    if expected is None:
        return None
    numbers = itertools.count()
    return lambda: [expected(next(numbers))[:, :tokens]]


def carries(mode: Mode, sizes: Sizes, prompt: int, tokens: int) -> tuple[Carries, ...]:
    framing = STEP_FRAMING * tokens + FIRST_FRAMING
    tensors = 512  # more than any of the models has
    return (
        Carries(UP, mode.up_nbytes(sizes, prompt, tokens), framing if not mode.naive else 4 * framing),
        Carries(DOWN, mode.down_nbytes(sizes, prompt, tokens), framing),
        Carries(BETWEEN, mode.between_nbytes(sizes, tokens), tensors * PUSH_FRAMING * tokens * mode.naive),
    )


def local_entry(
    make: Make, prompts: Prompts, tokens: int, expected: Prompts | None, device: str = "cpu"
) -> Entry:
    """Plain PyTorch, on the device of the executor's kind."""
    build = build_of(SEMANTIC, make, prompts, tokens)
    return Entry(
        LOCAL, lambda _: build(device), tokens, _reference(expected, tokens), warm_ups=WARM_UPS, goes_on=True
    )


def _arm(mode: Mode) -> Arm:
    if mode.naive:
        return Arm("explicit", 2, mode.name, run_ahead=False)
    return Arm(None, 1, mode.name, run_ahead=False)
