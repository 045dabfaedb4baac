"""Zeros that PyTorch knows to be zeros: forward mode makes them for tangents that are not there.

The dispatcher itself answers ops on them (zero times infinity is zero then), and asks for true zeros where it cannot.
"""

from __future__ import annotations

from typing import Any

import torch

from remora.device.dispatch import record
from remora.device.index import resolved
from remora.device.tensor import RemoraTensor

_ZERO = torch._C.DispatchKeySet(torch._C.DispatchKey.ZeroTensor)


def efficient_zeros(size: Any, **kwargs: Any) -> RemoraTensor:
    """The kernel of `aten._efficientzerotensor`."""
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    device = resolved(kwargs.get("device"))
    zeros = record(torch.ops.aten.zeros.default, (), (list(size),), {"dtype": dtype, "device": device}, 2)
    meta = zeros._value.meta
    result = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
        RemoraTensor,
        meta.shape,
        strides=meta.stride,
        dtype=dtype,
        layout=torch.strided,
        device=device,
        _extra_dispatch_keys=_ZERO,
    )
    result._value = zeros._value
    return result  # type: ignore[no-any-return]
