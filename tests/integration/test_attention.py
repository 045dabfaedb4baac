"""Attention with gradients on the executor: the kernel, and so the bits, of the local CPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

# tensors are [batch, heads, tokens, head dim]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.5},
    "boolean mask": {"attn_mask": torch.ones(7, 7, dtype=torch.bool).tril()},
    "additive mask": {"attn_mask": torch.linspace(-3, 0, 49).reshape(1, 1, 7, 7)},
    "dropout": {"dropout_p": 0.5},
    "grouped heads": {"enable_gqa": True},
}


def _attend(device: str, options: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The output and the gradients of query, key and value."""
    generator = torch.Generator().manual_seed(0)
    kv_heads = 2 if "enable_gqa" in options else 4
    q, k, v = (
        torch.randn(2, 7, heads, 16, generator=generator).to(dtype).to(device).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    )
    moved = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    torch.manual_seed(1)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    output = scaled_dot_product_attention(*heads_first, **moved)
    output.float().square().sum().backward()
    return [output.detach(), q.grad, k.grad, v.grad]


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_the_local_cpu(connected: ModuleType, case: str) -> None:
    expected = _attend("cpu", CASES[case])
    for got, here in zip(_attend("remora", CASES[case]), expected, strict=True):
        assert got.device.type == "remora"
        assert torch.equal(got.cpu(), here)


def test_half_precision_and_a_chosen_backend(connected: ModuleType) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for got, here in zip(
        _attend("remora", {}, torch.bfloat16), _attend("cpu", {}, torch.bfloat16), strict=True
    ):
        assert torch.equal(got.cpu(), here)
    with sdpa_kernel(SDPBackend.MATH):
        expected, found = _attend("cpu", {}), _attend("remora", {})
    for got, here in zip(found, expected, strict=True):
        assert torch.equal(got.cpu(), here)
