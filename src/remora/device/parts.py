"""A composite op is taken apart as PyTorch's own kernel does it."""

from __future__ import annotations

from typing import Any

import torch

from remora.device.compile import frames

_IMPLICIT = torch._C.DispatchKey.CompositeImplicitAutograd
_VIEWS = torch._C.DispatchKey.ADInplaceOrView
_unless_excluded = torch._C._SetExcludeDispatchKeyGuard  # type: ignore[attr-defined]


def in_parts(op: Any, *args: Any, **kwargs: Any) -> Any:
    """`op.decompose` may take a compiler's decomposition instead, which rounds otherwise.

    A trace of a whole call (device/guards.py) computes nothing, and may: PyTorch's kernel of a product asks for sizes
    as plain numbers in some versions, and the trace would hold at one length only."""
    if frames.here.ours:
        return op.decompose(*args, **kwargs)
    return op._op_dk(_IMPLICIT, *args, **kwargs)


def views_tracked() -> Any:
    """A context for taking a composite apart in the tensors' own dispatch, where composites arrive whole under
    inference_mode: PyTorch has shut off there what tells a view which tensor it views. For composites that return
    no view: one that was told already may not leave."""
    return _unless_excluded(_VIEWS, False)
