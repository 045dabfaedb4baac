"""Models of known shape with random weights, made from a seed: no download, the same everywhere.

All have an end token, as real ones do, so `generate` looks at every token. With the usual spread of weights, random
models say one token again and again; with VARIED they do not, so that wrong tokens cannot look like right ones.
"""

from __future__ import annotations

from typing import Any

import torch

USUAL, VARIED = 0.02, 0.2  # standard deviations of weights


def gpt2(
    layers: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 50257, spread: float = USUAL
) -> Any:
    """GPT-2; the defaults are the 124M model."""
    import transformers

    config = transformers.GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        initializer_range=spread,
        bos_token_id=0,
        eos_token_id=vocabulary - 1,
    )
    return _ready(transformers.GPT2LMHeadModel, config)


def llama(
    layers: int = 32,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    inner: int = 128,
    vocabulary: int = 512,
    dtype: torch.dtype = torch.float32,
    spread: float = USUAL,
) -> Any:
    """A Llama; the defaults are deep and thin: all capture, no compute."""
    import transformers

    config = transformers.LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width // heads,
        initializer_range=spread,
        vocab_size=vocabulary,
        bos_token_id=0,
        eos_token_id=vocabulary - 1,
        max_position_embeddings=8192,
    )
    return _ready(transformers.LlamaForCausalLM, config, dtype)


def _ready(model_type: Any, config: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    state = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        model = model_type(config).to(dtype).eval()
    finally:
        torch.set_rng_state(state)
    model.generation_config.pad_token_id = 0
    return model


def prompt(tokens: int, batch: int = 1, vocabulary: int = 512, seed: int = 1) -> torch.Tensor:
    """Token ids [batch, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocabulary, (batch, tokens), generator=generator)
