"""Ops that PyTorch itself defines in Python, outside of aten, when a program first uses them."""

from __future__ import annotations

from typing import Any

import torch

PYTHON_NAMESPACES = frozenset({"torch_nn"})
_ANY_DEVICE = torch._C.DispatchKey.CompositeExplicitAutograd


def run_here(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs the op's own code here, whose aten ops are recorded: an executor never imported what defines it."""
    return func._op_dk(_ANY_DEVICE, *args, **kwargs)
