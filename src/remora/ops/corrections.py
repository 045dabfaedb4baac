"""Where PyTorch's meta kernels say something else of a result than the kernels that compute it.

A correction takes the results' metadata as the meta kernel gives it, the call's positional arguments (a `Meta` for
a tensor) and the executor's device type, and gives what the real kernels do. tests/integration/test_compat.py and
`remora bench compat` compare them with the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from remora.ops.layout import (
    Meta,
    Shape,
    broadcast,
    contiguous,
    elementwise_stride,
    fresh,
    suggests_channels_last,
    viewed_stride,
)

Correction = Callable[[list[Meta], Sequence[Any], str], list[Meta]]


def _column_major(shape: Shape) -> Shape:
    """Strides of a batch of matrices whose columns are contiguous, as LAPACK wants them."""
    flipped = contiguous((*shape[:-2], shape[-1], shape[-2]))
    return (*flipped[:-2], flipped[-1], flipped[-2])


def _columns(*which: int, only: str | None = None) -> Correction:
    """Those outputs are column-major, on any device or on one type."""

    def correct(outs: list[Meta], args: Sequence[Any], device_type: str) -> list[Meta]:
        if only not in (None, device_type):
            return outs
        return [
            out._replace(stride=_column_major(out.shape)) if at in which and len(out.shape) > 1 else out
            for at, out in enumerate(outs)
        ]

    return correct


def _contiguous(outs: list[Meta], args: Sequence[Any], device_type: str) -> list[Meta]:
    return [fresh(out.shape, out.dtype) for out in outs]


def _unpooled(outs: list[Meta], args: Sequence[Any], device_type: str) -> list[Meta]:
    (out,), source = outs, args[0]
    if not suggests_channels_last(source.shape, source.stride) or len(out.shape) != 4:
        return outs
    _, c, h, w = out.shape
    return [out._replace(stride=(c * h * w, 1, w * c, c))]


def _normalised(training_at: int) -> Correction:
    """In evaluation the CPU saves no statistics for the gradient."""

    def correct(outs: list[Meta], args: Sequence[Any], device_type: str) -> list[Meta]:
        if device_type != "cpu" or args[training_at] is not False:
            return outs
        return [outs[0], *(fresh((0,), out.dtype) for out in outs[1:])]

    return correct


def _indexed(outs: list[Meta], args: Sequence[Any], device_type: str) -> list[Meta]:
    """The result is laid out by the strides of what is indexed, then of the indices, which the meta kernel leaves out.
    Source: ATen/native/TensorAdvancedIndexing.cpp, make_info."""
    (out,), (source, indices) = outs, args
    at = [dim for dim, index in enumerate(indices) if index is not None]
    used = [index for index in indices if index is not None]
    chosen = broadcast(*[index.shape for index in used])
    if not at or chosen is None or any(index.dtype != used[0].dtype for index in used):
        return outs
    strides = list(source.stride)
    if at[-1] - at[0] + 1 == len(at):
        before, after = strides[: at[0]], strides[at[-1] + 1 :]
    else:
        before, after = [], [stride for dim, stride in enumerate(strides) if dim not in at]
    operands = [(out.shape, (*before, *[0] * len(chosen), *after))]
    for index in used:
        lead = len(chosen) - len(index.shape)
        own = [0 if n != m else s for n, m, s in zip(index.shape, chosen[lead:], index.stride, strict=True)]
        shape = (*[1] * len(before), *chosen, *[1] * len(after))
        stride = viewed_stride(chosen, (*[0] * lead, *own), shape) or contiguous(shape)
        operands.append((shape, stride))
    return [out._replace(stride=elementwise_stride(out.shape, tuple(operands)))]


CORRECTIONS: dict[str, Correction] = {
    "aten.index.Tensor": _indexed,
    "aten.linalg_eig.default": _columns(1),
    "aten._linalg_svd.default": _columns(2, only="cpu"),
    "aten.nonzero_static.default": _contiguous,
    "aten.max_unpool2d.default": _unpooled,
    "aten.native_batch_norm.default": _normalised(5),
    "aten._native_batch_norm_legit.default": _normalised(5),
    "aten._native_batch_norm_legit.no_stats": _normalised(3),
}

# With `out=` of another shape these give a contiguous result, whatever layout they give without.
OUT_IS_CONTIGUOUS = frozenset(
    f"aten.{name}.default" for name in ("_fft_r2c", "_fft_c2r", "_fft_c2c", "cholesky", "cholesky_solve")
)
