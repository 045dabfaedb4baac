"""Remora tensors under PyTorch's tracers: fake tensors, and the proxies that make_fx and export record with.

Both know tensors of PyTorch's own class by heart and step aside for any subclass, which then runs the op for
real: a graph would hold the result instead of the op. A remora tensor is to them what a CPU tensor is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch

from remora.device.late import waits, when_loaded
from remora.device.tensor import RemoraTensor, nobodys

_PROXIES = "torch.fx.experimental.proxy_tensor"
_FAKES = "torch._subclasses.fake_tensor"
_PYTHON = torch._C.DispatchKey.Python


def meets_another_class(items: Iterable[Any]) -> bool:
    """Whether arguments, lists included, hold a tensor of another class that dispatches in Python."""
    for item in items:
        if isinstance(item, (list, tuple)):
            if meets_another_class(item):
                return True
        elif (
            isinstance(item, torch.Tensor)
            and type(item) is not RemoraTensor
            and torch._C._dispatch_keys(item).has(_PYTHON)
        ):
            return True
    return False


def install() -> None:
    """Idempotent."""
    when_loaded(_PROXIES, _change_proxies)
    when_loaded(_FAKES, _change_fakes)


def _change_proxies(module: ModuleType) -> None:
    if RemoraTensor not in module.HANDLED_TYPES:
        module.HANDLED_TYPES = (*module.HANDLED_TYPES, RemoraTensor)


def _change_fakes(module: ModuleType) -> None:
    steps_aside = module._check_for_subclass_arg
    if hasattr(steps_aside, "_remora"):
        return

    @functools.wraps(steps_aside)
    def check(item: Any) -> bool:
        return type(item) is not RemoraTensor and bool(steps_aside(item))

    check._remora = True  # type: ignore[attr-defined]
    module._check_for_subclass_arg = check


def probe() -> str | None:
    """Traces an op on a tensor that has no session."""
    if waits(_PROXIES) or waits(_FAKES):
        return None
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    constant = nobodys()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        graph = make_fx(lambda x: x + constant)(torch.empty(1, device="remora")).graph
    if not any(node.target is torch.ops.aten.add.Tensor for node in graph.nodes):
        return "make_fx records no op on a remora tensor"
    return None
