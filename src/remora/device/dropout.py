"""`dropout`, in the parts that the executor's device would take: a CPU and a GPU round it differently."""

from __future__ import annotations

from typing import Any

import torch

from remora.device.sink import bound


def register_dropout(library: Any) -> None:
    """PyTorch would take the GPU's parts for any device that is not the CPU."""
    for key in ("AutogradPrivateUse1", "PrivateUse1"):
        library.impl("dropout", _dropout, key)


def _dropout(input: Any, p: float, train: bool) -> Any:
    """As at::dropout; PyTorch's decomposition in Python is another: it draws for p = 1."""
    if not 0 <= p <= 1:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {p:g}")
    if p == 0 or not train or not input.numel():
        return input
    if p == 1:
        return input * torch.zeros((), dtype=input.dtype, device=input.device)
    bound.need()
    if bound.device_type == "cpu":
        return input * torch.empty_like(input).bernoulli_(1 - p).div_(1 - p)
    return torch.ops.aten.native_dropout(input, p, train)[0]
