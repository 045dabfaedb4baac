"""PyTorch's higher-order operators (`torch.cond`, `flex_attention`, …) on remora tensors.

Each has an eager kernel in Python that runs on any tensors; PyTorch only wants to be told that a tensor subclass
may use it. Its ops are then captured like any others; where it branches on data, it waits for the data.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils._pytree import tree_leaves

from remora.device.late import when_loaded
from remora.device.tensor import RemoraTensor
from remora.errors import NotSupported

_EAGER = torch._C.DispatchKey.CompositeExplicitAutograd
_FLEX = "torch.nn.attention.flex_attention"
# Their eager kernels are made of differentiable ops. PyTorch's own way to their gradients is to trace a backward
# graph on fake tensors, which for a branch that is known has no advantage.
_DIFFERENTIABLE = frozenset({"cond", "flex_attention", "map_impl"})


def _eager(op: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        kernel = op.py_kernels.get(_EAGER)
        if kernel is None:
            raise NotSupported(f"{op} has no eager kernel, so it cannot run on remora tensors")
        return kernel(*args, **kwargs)

    return run


def install() -> None:
    """Idempotent. Operators that are made later have the rule too: it is registered at the first call."""
    dispatch = HigherOrderOperator.dispatch
    if hasattr(dispatch, "_remora"):
        return

    @functools.wraps(dispatch)
    def with_rule(self: Any, /, dispatch_key: Any, *args: Any, **kwargs: Any) -> Any:
        if torch._C._len_torch_dispatch_stack() == 0 and _on_remora(args, kwargs):
            if self._name in _DIFFERENTIABLE:
                return _eager(self)(*args, **kwargs)
            if RemoraTensor not in self.python_key_table:
                self.py_impl(RemoraTensor)(_eager(self))
        return dispatch(self, dispatch_key, *args, **kwargs)

    with_rule._remora = True  # type: ignore[attr-defined]
    HigherOrderOperator.dispatch = with_rule
    when_loaded(_FLEX, _change_flex)


def _on_remora(args: Any, kwargs: Any) -> bool:
    return any(isinstance(leaf, RemoraTensor) for leaf in tree_leaves((args, kwargs)))


def _change_flex(module: ModuleType) -> None:
    """flex_attention has a list of devices; and its advice to compile it is not for remora."""
    validate = module._validate_device
    if hasattr(validate, "_remora"):
        return

    @functools.wraps(validate)
    def validate_device(query: Any, *others: Any) -> None:
        if isinstance(query, RemoraTensor):
            getattr(module, "_WARNINGS_SHOWN", set()).add("flex_attention_performance")
        else:
            validate(query, *others)

    validate_device._remora = True  # type: ignore[attr-defined]
    module._validate_device = validate_device


def probe() -> str | None:
    return (
        None if hasattr(HigherOrderOperator.dispatch, "_remora") else "higher-order operators refuse remora"
    )
