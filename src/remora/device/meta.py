"""Interned metadata of tensors: equal metadata is one object, so a memo key compares by identity."""

from __future__ import annotations

from typing import Any

import torch

from remora.ops.layout import Meta


class TensorMeta:
    """Shape, stride, offset and dtype of a tensor; made only by `intern`."""

    __slots__ = ("_example", "dtype", "facts", "offset", "shape", "stride")

    def __init__(self, facts: Meta) -> None:
        self.facts = facts
        self.shape = torch.Size(facts.shape)
        self.stride = facts.stride
        self.offset = facts.offset
        self.dtype: torch.dtype = facts.dtype  # type: ignore[assignment]
        self._example: torch.Tensor | None = None

    def example(self) -> torch.Tensor:
        """A tensor on the meta device with this metadata, for running meta kernels."""
        if self._example is None:
            with torch.inference_mode(False):
                span = (
                    self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
                )
                nbytes = 0 if 0 in self.shape else span
                base = torch.empty(nbytes, dtype=self.dtype, device="meta")
                self._example = base.as_strided(self.shape, self.stride, self.offset)
        return self._example

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"TensorMeta({tuple(self.shape)}, {self.dtype})"


_interned: dict[Meta, TensorMeta] = {}


def intern(facts: Meta) -> TensorMeta:
    found = _interned.get(facts)
    if found is None:
        found = _interned[facts] = TensorMeta(facts)
    return found


def meta_of(tensor: torch.Tensor) -> TensorMeta:
    return intern(Meta(tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype))


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
