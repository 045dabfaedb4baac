"""A wrong call's error in the words of eager PyTorch: meta kernels have words of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from remora.device.tensor import RemoraTensor
from remora.errors import RemoraError
from remora.ops.layout import span_of

MAX_NBYTES = 64 << 20  # of stand-ins


def as_eager(func: Any, args: Any, kwargs: Any, error: Exception) -> Exception:
    """What the call raises on small CPU tensors of the same shapes, if it raises at all; else `error`.

    Only for calls that have failed already. The stand-ins hold ones, and what depends on data is not said.
    """
    if isinstance(error, RemoraError):
        return error
    nbytes = 0

    def stand_in(item: Any) -> Any:
        nonlocal nbytes
        if isinstance(item, RemoraTensor):
            meta = item._value.meta
            span = span_of(meta.shape, meta.stride)
            nbytes += span * meta.dtype.itemsize
            if nbytes > MAX_NBYTES:
                raise OverflowError
            return torch.ones(span, dtype=meta.dtype).as_strided(meta.shape, meta.stride)
        return torch.device("cpu") if isinstance(item, torch.device) else item

    try:
        with torch.no_grad():
            func(*tree_map(stand_in, args), **tree_map(stand_in, kwargs))
    except OverflowError:
        return error
    except (RuntimeError, IndexError, TypeError, ValueError) as said:
        if not isinstance(said, (NotImplementedError, torch.linalg.LinAlgError)):
            return said.with_traceback(None)
    return error
