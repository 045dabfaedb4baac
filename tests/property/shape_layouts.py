"""Draws tensors of any layout, and shapes, dtypes and dimensions that go with one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
INTS = [torch.int64, torch.int32, torch.uint8]
DTYPES = [*FLOATS, *INTS, torch.bool, torch.complex64]


class Layout(NamedTuple):
    """A tensor to make: on meta, or on CPU where every element is `fill`."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    fill: int = 1

    def tensor(self, device: str) -> torch.Tensor:
        last = sum((s - 1) * a for s, a in zip(self.shape, self.stride, strict=True))
        nelement = self.offset + (0 if 0 in self.shape else last + 1)
        base = torch.full((nelement,), self.fill, dtype=self.dtype, device=device)
        return torch.as_strided(base, self.shape, self.stride, self.offset)


Draw = Any
sizes = st.sampled_from([0, 1, 1, 2, 3, 5])
shapes = st.lists(sizes, max_size=5).map(tuple)


def layouts(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype, fill: int = 1) -> Layout:
    """Contiguous, a permutation, a slice of something larger, expanded, or odd where sizes are 1."""
    contiguous = torch.empty(shape, device="meta").stride()
    kind = draw(st.sampled_from(["contiguous"] * 4 + ["permuted", "sliced", "expanded", "odd"]))
    if kind == "contiguous":
        return Layout(shape, contiguous, draw(st.sampled_from([0, 0, 7])), dtype, fill)
    order = draw(st.permutations(range(len(shape)))) if kind != "odd" else range(len(shape))
    stride, step = [0] * len(shape), 1
    for dim in reversed(order):
        if kind == "expanded" and draw(st.booleans()):
            continue
        stride[dim] = step
        step *= max(shape[dim], 1)
        if kind == "sliced":
            step *= draw(st.sampled_from([1, 1, 2, 3]))
        if kind == "odd" and shape[dim] == 1:
            stride[dim] = draw(st.sampled_from([1, 2, 3, 60]))
    return Layout(shape, tuple(stride), draw(st.sampled_from([0, 0, 7])), dtype, fill)


def tensor(draw: Draw, shape: Any = shapes, dtypes: Any = DTYPES, fill: int = 1) -> Layout:
    shape = shape if isinstance(shape, tuple) else draw(shape)
    return layouts(draw, shape, draw(st.sampled_from(dtypes)), fill)


def partner(draw: Draw, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that mostly broadcasts with `shape`."""
    kind = draw(st.sampled_from(["same", "same", "cut", "ones", "any"]))
    if kind == "any":
        return draw(shapes)
    if kind == "cut":
        return shape[draw(st.integers(0, len(shape))) :]
    if kind == "ones":
        return tuple(1 if draw(st.booleans()) else s for s in shape)
    return shape


def dtype_near(draw: Draw, dtype: torch.dtype) -> torch.dtype:
    return draw(st.sampled_from([dtype, dtype, dtype, draw(st.sampled_from(DTYPES))]))


def dim_of(draw: Draw, x: Layout) -> int:
    n = max(len(x.shape), 1)
    return draw(st.integers(-n, n - 1))


def dims_of(draw: Draw, x: Layout) -> list[int]:
    dims = draw(st.lists(st.integers(0, max(len(x.shape) - 1, 0)), unique=True, max_size=3))
    return [d - max(len(x.shape), 1) if draw(st.booleans()) else d for d in dims]


def numbers(draw: Draw) -> Any:
    return draw(st.sampled_from([1, 2, -1, 1.5, True]))
