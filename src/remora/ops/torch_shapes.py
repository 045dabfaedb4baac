"""The shape rules bound to torch's own dtypes and formats."""

from __future__ import annotations

from dataclasses import replace

import torch

from remora.ops.shapes import Constants, Rule, rules

CONSTANTS = Constants(
    bool=torch.bool,
    int64=torch.int64,
    floating=frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64}),
    wide=frozenset({torch.float32, torch.float64}),
    integral=frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}),
    strided=torch.strided,
    contiguous_format=torch.contiguous_format,
    preserve_format=torch.preserve_format,
)


def shape_rules(device_type: str = "cuda") -> dict[str, Rule]:
    """Op name to shape rule, over torch dtypes, for an executor of this device type."""
    return rules(replace(CONSTANTS, attention_like_query=device_type == "cpu"))
