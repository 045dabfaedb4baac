"""Ops that are not PyTorch's own: custom ops, and those of libraries."""

from __future__ import annotations

from typing import Any

import torch

from remora.errors import NotSupported
from remora.ops.schema import op_name

_ANY_DEVICE = torch._C.DispatchKey.CompositeExplicitAutograd
_DECOMPOSED = torch._C.DispatchKey.CompositeImplicitAutograd


def foreign_op(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs the op's own implementation here, whose PyTorch ops are then recorded.

    An executor knows PyTorch's ops alone, and takes no code. A custom op that is written for any device needs no
    more; one with kernels for certain devices cannot be had.
    """
    for key in (_ANY_DEVICE, _DECOMPOSED):
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key.name):
            return func._op_dk(key, *args, **kwargs)
    raise NotSupported(
        f"{op_name(func)} has no implementation that runs on any device, and an executor knows PyTorch's ops only; "
        "give it one with torch.library.custom_op(..., device_types=None) or register_kernel(None)"
    )
