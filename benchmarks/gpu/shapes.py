"""The models that are decoded on a GPU, with random bf16 weights, and what is demanded of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers


@dataclass(frozen=True)
class Shape:
    """bar_ms: a token in the exact tier, at any round trip. kind: `gpt2`, `gptj` or `llama`."""

    bar_ms: float
    kind: str
    hidden: int
    inner: int
    layers: int
    heads: int
    dtype: torch.dtype = torch.bfloat16


NO_BAR = float("inf")
SHAPES = {
    "gpt2": Shape(2.5, "gpt2", 768, 3072, 12, 12),
    "gpt2-xl": Shape(NO_BAR, "gpt2", 1600, 6400, 48, 25),
    "gpt-j": Shape(NO_BAR, "gptj", 4096, 16384, 28, 16, torch.float16),
    "llama-1b": Shape(NO_BAR, "llama", 2048, 8192, 16, 32),
    "llama-8b": Shape(9.0, "llama", 4096, 14336, 32, 32),
}


def make(name: str, device: str, tiny: bool) -> Any:
    """Random weights, made on the device, in the shape's dtype; tiny: two thin layers of its kind."""
    shape = SHAPES[name]
    if tiny:
        shape = replace(shape, hidden=64, inner=128, layers=2, heads=8)
    config, kind = _gpt(shape) if shape.kind.startswith("gpt") else _llama(shape)
    torch.manual_seed(0)
    torch.set_default_dtype(shape.dtype)
    try:
        with torch.device(device):
            model = kind(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.eval()
    model.generation_config.pad_token_id = 0
    return model


def _gpt(shape: Shape) -> tuple[Any, Any]:
    size = {"n_layer": shape.layers, "n_embd": shape.hidden, "n_head": shape.heads, "n_inner": shape.inner}
    if shape.kind == "gpt2":
        config: Any = transformers.GPT2Config(bos_token_id=0, eos_token_id=50256, **size)
        return config, transformers.GPT2LMHeadModel
    rotary = min(64, shape.hidden // shape.heads)
    config = transformers.GPTJConfig(bos_token_id=0, eos_token_id=50256, rotary_dim=rotary, **size)
    return config, transformers.GPTJForCausalLM


def _llama(shape: Shape) -> tuple[Any, Any]:
    config: Any = transformers.LlamaConfig(
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
    return config, transformers.LlamaForCausalLM


def sharing(model: Any) -> Any:
    """The same model as another object, to be moved: its weights lie where the model's do until then."""
    weights = {id(weight): torch.nn.Parameter(weight.detach(), False) for weight in model.parameters()}
    return copy.deepcopy(model, dict(weights))


def prompt(tokens: int) -> torch.Tensor:
    """Ids [1, tokens], the same in every process."""
    return torch.randint(1, 50000, (1, tokens), generator=torch.Generator().manual_seed(1))
