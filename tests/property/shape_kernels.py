"""Draws the arguments of products, attention, convolutions and norms."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from shape_layouts import DTYPES, Draw, Layout, dtype_near, partner, sizes, tensor

from remora.ops.layout import contiguous


def norm(affine: int, native: bool = False) -> Any:
    def strategy(draw: Draw) -> Any:
        x = tensor(draw)
        normalized = x.shape[draw(st.integers(0, len(x.shape))) :]
        args: list[Any] = [x, list(normalized)]
        for _ in range(affine):
            dtype = dtype_near(draw, x.dtype)
            args.append(draw(st.sampled_from([None, tensor(draw, normalized, [dtype])])))
        return [*args, 1e-5] if native or affine == 1 else args, {}

    return strategy


def product(ndim: int) -> Any:
    def strategy(draw: Draw) -> Any:
        b, m, k, n = (draw(sizes) for _ in range(4))
        lead = (b,) if ndim == 3 else ()
        dtype = draw(st.sampled_from(DTYPES))
        return [tensor(draw, (*lead, m, k), [dtype]), tensor(draw, (*lead, k, n), [dtype])], {}

    return strategy


def grouped_mm(draw: Draw) -> Any:
    """bfloat16, sizes of 16 bytes: what PyTorch's own meta kernel takes."""
    g, *sizes = draw(st.integers(1, 3)), *(8 * draw(st.integers(1, 2)) for _ in range(3))
    m, k, n = sizes
    a, b = draw(st.sampled_from([((m, k), (g, k, n)), ((g, m, k), (k, n)), ((m, k), (k, n))]))
    made = [Layout(s, torch.empty(s, device="meta").stride(), 0, torch.bfloat16) for s in (a, b)]
    whole = k if len(a) == len(b) else n if len(b) == 2 else m
    return [*made, Layout((g,), (1,), 0, torch.int32, whole)], {}


def addmm(draw: Draw) -> Any:
    (a, b), _ = product(2)(draw)
    bias = tensor(draw, partner(draw, (a.shape[0], b.shape[1])), [a.dtype])
    return [bias, a, b], draw(st.sampled_from([{}, {"beta": 1, "alpha": 2}]))


def linear(draw: Draw) -> Any:
    x = tensor(draw)
    weight = tensor(draw, (draw(sizes), x.shape[-1] if x.shape else 1), [dtype_near(draw, x.dtype)])
    bias = tensor(draw, weight.shape[:1], [dtype_near(draw, x.dtype)])
    return [x, weight, *draw(st.sampled_from([[], [None], [bias]]))], {}


def matmul(draw: Draw) -> Any:
    a = tensor(draw)
    k = a.shape[-1] if a.shape else 1
    lead = partner(draw, a.shape[:-2])
    shape = draw(st.sampled_from([(k,), (k, draw(sizes)), (*lead, k, draw(sizes))]))
    return [a, tensor(draw, shape, [dtype_near(draw, a.dtype)])], {}


def attention(draw: Draw) -> Any:
    b, h, t, s, d, dv = (draw(st.integers(1, 4)) for _ in range(6))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    q, k, v = ((b, h, t, d), (b, h, s, d), (b, h, s, dv))
    mask = tensor(draw, draw(st.sampled_from([(t, s), (b, 1, t, s), (1, 1, t, s)])), [dtype, torch.bool])
    arguments = draw(st.sampled_from([[], [mask], [None, 0.0, True]]))
    return [*(tensor(draw, shape, [dtype]) for shape in (q, k, v)), *arguments], {}


def image(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype, dense: bool = False) -> Layout:
    """Often channels-last. dense: else contiguous, as some kernels want it."""
    if draw(st.booleans()):
        return Layout(shape, contiguous(shape), 0, dtype) if dense else tensor(draw, shape, [dtype])
    stride = torch.empty(shape, device="meta", memory_format=torch.channels_last).stride()
    return Layout(shape, stride, 0, dtype)


def convolution(kind: str) -> Any:
    """kind: "whole" for aten.convolution, "backward", or "plain" and "transposed" for the composites."""

    def strategy(draw: Draw) -> Any:
        dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64]))
        groups, inner, outer = (
            draw(st.sampled_from([1, 1, 2])),
            draw(st.integers(1, 3)),
            draw(st.integers(1, 3)),
        )
        transposed = kind == "transposed" or (kind != "plain" and draw(st.booleans()))
        kernel = [draw(st.integers(1, 3)) for _ in range(2)]
        dense = kind == "backward"
        area = [draw(st.integers(1, 6)) for _ in kernel]
        x = image(draw, (draw(st.integers(1, 2)), inner * groups, *area), dtype, dense)
        into = (inner * groups, outer) if transposed else (outer * groups, inner)
        weight = image(draw, (*into, *kernel), dtype, dense)
        bias = draw(st.sampled_from([None, tensor(draw, (outer * groups,), [dtype])]))
        stride, padding, dilation = ([draw(st.integers(a, 2)) for _ in kernel] for a in (1, 0, 1))
        more = [draw(st.integers(0, 1)) for _ in kernel] if transposed else [0, 0]
        if kind == "plain":
            return [x, weight, bias, stride, padding, dilation, groups], {}
        if kind == "transposed":
            return [x, weight, bias, stride, padding, more, groups, dilation], {}
        numbers = [stride, padding, dilation, transposed, more, groups]
        if kind == "whole":
            return [x, weight, bias, *numbers], {}
        sides = [
            (n - 1) * s - 2 * p + d * (k - 1) + o + 1
            if transposed
            else (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d, o in zip(x.shape[2:], kernel, stride, padding, dilation, more, strict=True)
        ]
        grad = tensor(draw, (x.shape[0], outer * groups, *(max(side, 1) for side in sides)), [dtype])
        return [grad, x, weight, [outer * groups], *numbers, [True, True, True]], {}

    return strategy


def group_norm(kind: str) -> Any:
    """kind: "plain", "native" or "backward"."""

    def strategy(draw: Draw) -> Any:
        dtypes = [torch.float32, torch.float64, torch.bfloat16]
        dtype = draw(st.sampled_from(dtypes if kind == "plain" else dtypes[:2]))
        groups = draw(st.integers(1, 2))
        shape = (
            draw(st.integers(1, 2)),
            groups * draw(st.integers(1, 2)),
            *(draw(st.integers(1, 3)) for _ in "hw"),
        )
        x, channels = image(draw, shape, dtype, kind != "plain"), shape[1:2]
        weight, bias = (draw(st.sampled_from([None, tensor(draw, channels, [dtype])])) for _ in "wb")
        if kind == "plain":
            return [x, groups, weight, bias], {}
        numbers = [*shape[:2], shape[2] * shape[3], groups]
        if kind == "native":
            return [x, weight, bias, *numbers, 1e-5], {}
        statistics = [tensor(draw, (shape[0], groups), [dtype]) for _ in "mr"]
        scale = tensor(draw, channels, [dtype])
        return [x, x, *statistics, scale, *numbers, [True, True, True]], {}

    return strategy
