"""Shadows: copies on the client of small values that came from it, and local folding of ops on them.

Programs upload tiny integers (token ids, masks, positions), compute on them and branch on the result. Such
values are known here already, so the branch needs no round trip. Only what every device computes alike is
folded: views, and ops from integers and booleans to integers and booleans.
"""

from __future__ import annotations

from typing import Any

import torch

MAX_NUMEL = 1 << 14  # folding stays cheaper than recording, and below what PyTorch spreads over threads
MAX_FLOATS = 16  # numbers, not weights
EXACT = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


class Shadow:
    """A CPU copy. Aliases share `valid`, a cell that turns false when something writes that is not known here."""

    __slots__ = ("tensor", "valid")

    def __init__(self, tensor: torch.Tensor, valid: list[bool] | None = None) -> None:
        self.tensor = tensor
        self.valid = valid if valid is not None else [True]


def foldable(traits: Any, inputs: list[Any], outs: list[Any]) -> bool:
    """Whether an op with these input and output metas may be folded; decided once per memo entry."""
    if traits.random or traits.dynamic_shape:
        return False
    known = [out for out in outs if out is not None]
    if any(meta.shape.numel() > MAX_NUMEL for meta in known):
        return False
    if traits.views and not traits.mutates:
        return True
    return all(meta.dtype in EXACT for meta in (*inputs, *known))


def worth_keeping(tensor: torch.Tensor) -> bool:
    """Whether an upload keeps a shadow: what programs branch on, and not small weights."""
    return tensor.numel() <= (MAX_NUMEL if tensor.dtype in EXACT else MAX_FLOATS)


def known(value: Any) -> torch.Tensor | None:
    shadow = value.shadow
    return shadow.tensor if shadow is not None and shadow.valid[0] else None


def fold(func: Any, args: Any, kwargs: Any, tensor_type: type) -> Any:
    """Runs the op on the shadows of its inputs, which are all known."""

    def local(x: Any) -> Any:
        if isinstance(x, tensor_type):
            return known(x._value)  # type: ignore[attr-defined]
        if isinstance(x, (list, tuple)):
            return [local(item) for item in x]
        if isinstance(x, torch.device):
            return _CPU
        return x

    with torch.no_grad():
        return func(*map(local, args), **{name: local(x) for name, x in (kwargs or {}).items()})


_CPU = torch.device("cpu")
