"""Interned metadata of tensors: equal metadata is one object, so a memo key compares by identity.

The device belongs to it, so a call on another device is another call to whatever compares metadata, at no cost.
"""

from __future__ import annotations

from typing import Any

import torch

from remora.device.index import device_at
from remora.ops.layout import Meta, end_of

CONJ, NEG = 1, 2


class TensorMeta:
    """Shape, stride, offset, dtype and device of a tensor; made only by `intern`.

    lazy: CONJ and NEG, what is still to be done to the values when they are read: `conj()` is a view in PyTorch.
    """

    __slots__ = ("_example", "device", "dtype", "facts", "index", "lazy", "offset", "shape", "stride")

    def __init__(self, facts: Meta, lazy: int, index: int) -> None:
        self.facts = facts
        self.lazy = lazy
        self.index = index
        self.device = device_at(index)
        self.shape = torch.Size(facts.shape)
        self.stride = facts.stride
        self.offset = facts.offset
        self.dtype: torch.dtype = facts.dtype  # type: ignore[assignment]
        self._example: torch.Tensor | None = None

    def example(self) -> torch.Tensor:
        """A tensor on the meta device with this metadata, for running meta kernels."""
        if self._example is None:
            self._example = self.fresh_example()
        return self._example

    def fresh_example(self) -> torch.Tensor:
        """One that an op may write and resize."""
        with torch.inference_mode(False):
            end = end_of(self.shape, self.stride, self.offset)
            base = torch.empty(end, dtype=self.dtype, device="meta")
            example = base.as_strided(self.shape, self.stride, self.offset)
        if self.lazy:
            self.mark(example)
        return example

    def mark(self, tensor: torch.Tensor) -> None:
        """Sets the tensor's bits for what is lazy."""
        if tensor.is_conj() != bool(self.lazy & CONJ):
            torch._C._set_conj(tensor, bool(self.lazy & CONJ))
        if tensor.is_neg() != bool(self.lazy & NEG):
            torch._C._set_neg(tensor, bool(self.lazy & NEG))

    def at(self, index: int) -> TensorMeta:
        """The same on another device."""
        return self if index == self.index else intern(self.facts, self.lazy, index)

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"TensorMeta({tuple(self.shape)}, {self.dtype})"


_interned: dict[tuple[Meta, int, int], TensorMeta] = {}


def intern(facts: Meta, lazy: int = 0, index: int = 0) -> TensorMeta:
    """index: of the device."""
    found = _interned.get((facts, lazy, index))
    if found is None:
        found = _interned[facts, lazy, index] = TensorMeta(facts, lazy, index)
    return found


def meta_of(tensor: torch.Tensor) -> TensorMeta:
    """As of a tensor on the first device."""
    lazy = (CONJ if tensor.is_conj() else 0) | (NEG if tensor.is_neg() else 0)
    return intern(Meta(tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype), lazy)


def contiguous_meta(shape: Any, dtype: torch.dtype) -> TensorMeta:
    stride: list[int] = []
    step = 1
    for n in reversed(shape):
        stride.append(step)
        step *= max(n, 1)
    return intern(Meta(tuple(shape), tuple(reversed(stride)), 0, dtype))


def dense_order(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Dimensions from the slowest to the fastest if the tensor fills its memory without gaps, else None."""
    order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride(d), -tensor.size(d), d))
    return tuple(order) if tensor.permute(order).is_contiguous() else None
