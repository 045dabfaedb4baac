"""The ways in which `generate` is tried."""

from __future__ import annotations

from typing import Any

import torch


def modes(
    prompt: torch.Tensor, batch: torch.Tensor, padding: torch.Tensor
) -> dict[str, tuple[torch.Tensor, dict[str, Any]]]:
    """By name: token ids and options. padding: the attention mask of a left-padded `batch`."""
    return {
        "greedy": (prompt, {}),
        "sampled": (prompt, {"do_sample": True, "top_k": 20, "temperature": 0.8}),
        "beams": (prompt, {"num_beams": 3}),
        "batch": (batch, {}),
        "left padded": (batch, {"attention_mask": padding}),
        "left padded beams": (batch, {"attention_mask": padding, "num_beams": 2}),
        "static cache": (prompt, {"cache_implementation": "static", "disable_compile": True}),
    }
