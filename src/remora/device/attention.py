"""Attention that needs a gradient: the kernel that eager PyTorch picks on the executor's device.

`scaled_dot_product_attention` chooses its kernel by the device that it runs on, and knows none for ours: it
would take the plain products, whose bits differ from those of a CPU's fused kernel. Where nothing needs a
gradient the op stays whole, and the executor's PyTorch chooses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from remora.device.sink import bound
from remora.device.tensor import RemoraTensor
from remora.ops.layout import span_of

aten = torch.ops.aten
_choose = torch._fused_sdp_choice
_FLASH = torch.nn.attention.SDPBackend.FLASH_ATTENTION.value
_chosen: dict[tuple[Any, ...], bool] = {}


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Scaled dot product attention, taken apart for autograd."""
    if bound.sink is None:
        bound.need()
    tensors = (query, key, value, attn_mask)
    plain = forward_ad._current_level < 0 and all(t is None or type(t) is RemoraTensor for t in tensors)
    # transforms (torch.func, forward mode) have rules for the parts alone
    if plain and bound.device_type == "cpu" and _takes_flash(tensors, dropout_p, is_causal, enable_gqa):
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    return aten.scaled_dot_product_attention.default._op_dk(
        torch._C.DispatchKey.CompositeImplicitAutograd,
        *tensors,
        dropout_p,
        is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def _takes_flash(
    tensors: tuple[torch.Tensor | None, ...], dropout_p: float, is_causal: bool, enable_gqa: bool
) -> bool:
    """Asks PyTorch's own choice for CPU tensors. It reads metadata alone, so one answer serves all alike."""
    facts = [
        t if t is None else (t.shape, t.stride(), t.dtype, t.requires_grad and torch.is_grad_enabled())
        for t in tensors
    ]
    switches = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled())
    key = (*facts, dropout_p > 0, is_causal, enable_gqa, switches)
    found = _chosen.get(key)
    if found is None:
        examples = [t if t is None else _example(t) for t in tensors]
        choice = _choose(*examples, dropout_p, is_causal, enable_gqa=enable_gqa)
        found = _chosen[key] = choice == _FLASH
    return found


def _example(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor with the same metadata, whose memory nothing touches."""
    base = torch.empty(span_of(tensor.shape, tensor.stride()), dtype=tensor.dtype, device="cpu")
    return base.as_strided(tensor.shape, tensor.stride()).requires_grad_(tensor.requires_grad)
