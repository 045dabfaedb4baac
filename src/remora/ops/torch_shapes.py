"""The shape rules bound to torch's own dtypes and formats."""

from __future__ import annotations

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


def shape_rules() -> dict[str, Rule]:
    """Op name to shape rule, over torch dtypes."""
    return rules(CONSTANTS)
