"""The models that are decoded on a GPU, with random bf16 weights, and what is demanded of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import transformers


@dataclass(frozen=True)
class Shape:
    """bar_ms: a token in the exact tier, at any round trip; inexact_bar_ms: with `exact=False`. A Llama has its four
    sizes, GPT-2 is its default."""

    bar_ms: float
    hidden: int = 0
    inner: int = 0
    layers: int = 0
    heads: int = 0
    inexact_bar_ms: float = float("inf")


SHAPES = {
    "gpt2": Shape(2.5),
    "llama-1b": Shape(float("inf"), 2048, 8192, 16, 32),
    "llama-8b": Shape(9.0, 4096, 14336, 32, 32, 7.0),
}
TINY = Shape(float("inf"), 64, 128, 2, 8)


def make(name: str, device: str, tiny: bool) -> Any:
    """Random bf16 weights, made on the device."""
    shape = SHAPES[name]
    if not shape.layers:
        size = {"n_layer": 2, "n_embd": 48} if tiny else {}
        config: Any = transformers.GPT2Config(bos_token_id=0, eos_token_id=50256, **size)
        kind: Any = transformers.GPT2LMHeadModel
    else:
        shape = TINY if tiny else shape
        config = transformers.LlamaConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=8,
            vocab_size=128256,
            max_position_embeddings=8192,
            bos_token_id=0,
            eos_token_id=128255,
        )
        kind = transformers.LlamaForCausalLM
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = kind(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.eval()
    model.generation_config.pad_token_id = 0
    return model


def sharing(model: Any) -> Any:
    """The same model as another object, to be moved: its weights lie where the model's do until then."""
    weights = {id(weight): torch.nn.Parameter(weight.detach(), False) for weight in model.parameters()}
    return copy.deepcopy(model, dict(weights))


def prompt(tokens: int) -> torch.Tensor:
    """Ids [1, tokens], the same in every process."""
    return torch.randint(1, 50000, (1, tokens), generator=torch.Generator().manual_seed(1))
