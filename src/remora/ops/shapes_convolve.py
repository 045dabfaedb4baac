"""Shape rules of convolutions over images, which keep the channels-last layout of an image or a weight.

PyTorch's meta kernels lay every result out contiguously as a CPU's would be; CPU and CUDA kernels do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remora.ops.layout import (
    Constants,
    Meta,
    Shape,
    contiguous,
    is_contiguous,
    stride_of_order,
    suggests_channels_last,
)

# N batch, C channels, O output channels, H height, W width
CHANNELS_LAST = (1, 3, 2, 0)


def convolution(
    c: Constants,
    x: Meta,
    weight: Meta,
    bias: Meta | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Meta | None:
    """x [N, C, H, W], weight [O, C / groups, h, w], or [C, O / groups, h, w] where it is transposed."""
    if not _joins(c, x, weight, bias) or len(x.shape) != 4 or len(weight.shape) != 4 or groups < 1:
        return None
    out, inner = (weight.shape[1] * groups, weight.shape[0]) if transposed else weight.shape[:2]
    if x.shape[1] != (inner if transposed else inner * groups) or out % groups or weight.shape[0] % groups:
        return None
    if bias is not None and bias.shape != (out,):
        return None
    sides = []
    for at in (0, 1):
        numbers = [_at(items, at) for items in (stride, padding, dilation, output_padding)]
        side = _side(x.shape[2 + at], weight.shape[2 + at], transposed, numbers)
        if side is None:
            return None
        sides.append(side)
    return _laid_out((x.shape[0], out, *sides), x, weight)


def conv2d(
    c: Constants,
    x: Meta,
    weight: Meta,
    bias: Meta | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Meta | None:
    return convolution(c, x, weight, bias, stride, padding, dilation, False, (0, 0), groups)


def conv_transpose2d(
    c: Constants,
    x: Meta,
    weight: Meta,
    bias: Meta | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1),
) -> Meta | None:
    return convolution(c, x, weight, bias, stride, padding, dilation, True, output_padding, groups)


def convolution_backward(
    c: Constants,
    grad: Meta,
    x: Meta,
    weight: Meta,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Meta, Meta, Meta] | None:
    """All three gradients; a masked one is left to the meta kernel."""
    numbers = (stride, padding, dilation, transposed, output_padding, groups)
    result = convolution(c, x, weight, None, *numbers)
    if result is None or grad.shape != result.shape or grad.dtype != x.dtype or not all(output_mask):
        return None
    out = result.shape[1]
    return _laid_out(x.shape, x, weight), _laid_out(weight.shape, x, weight), Meta((out,), (1,), 0, x.dtype)


def _joins(c: Constants, x: Meta, weight: Meta, bias: Meta | None) -> bool:
    shared = weight.dtype == x.dtype and (bias is None or bias.dtype == x.dtype)
    return shared and x.dtype in c.floating and 0 not in x.shape and 0 not in weight.shape


def _at(items: Sequence[int], at: int) -> int:
    return items[at] if len(items) > 1 else items[0] if items else 0


def _side(length: int, kernel: int, transposed: bool, numbers: Sequence[int]) -> int | None:
    stride, padding, dilation, output_padding = numbers
    if stride < 1 or padding < 0 or dilation < 1 or output_padding < 0:
        return None
    reach = dilation * (kernel - 1)
    if transposed:
        if output_padding >= max(stride, dilation):
            return None
        side = (length - 1) * stride - 2 * padding + reach + output_padding + 1
    else:
        side = (length + 2 * padding - reach - 1) // stride + 1 if length + 2 * padding > reach else 0
    return side if side > 0 else None


def _laid_out(shape: Shape, x: Meta, weight: Meta) -> Meta:
    """Channels last if one of the two suggests it. Where both layouts are one, backends differ about which of
    the two strides they say; here it is the contiguous one."""
    stride = stride_of_order(shape, CHANNELS_LAST)
    likes = suggests_channels_last(x.shape, x.stride) or suggests_channels_last(weight.shape, weight.stride)
    return Meta(
        shape, stride if likes and not is_contiguous(shape, stride) else contiguous(shape), 0, x.dtype
    )


RULES: dict[str, Any] = {
    "aten.conv2d.default": conv2d,
    "aten.conv_transpose2d.input": conv_transpose2d,
    "aten.convolution.default": convolution,
    "aten.convolution_backward.default": convolution_backward,
}
