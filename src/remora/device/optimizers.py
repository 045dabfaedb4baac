"""Optimizers and gradient clipping take their foreach form for remora tensors, as they do on a GPU.

PyTorch takes it by default for our device, but only for tensor classes that it was told of; DTensor enters itself
in the same lists. One `_foreach_` row stands for a row per parameter then. Of NAdam, RAdam and ASGD the two forms
round differently: on a CPU executor these take the form that a CPU takes, and the bits are those of local PyTorch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.optim import asgd, nadam, optimizer, radam
from torch.utils import _foreach_utils

from remora.capture.recorder import FIRST_CUT_ROWS
from remora.device.sink import bound
from remora.device.tensor import RemoraTensor

_LISTS: tuple[list[Any], ...] = (
    optimizer._foreach_supported_types,
    _foreach_utils._foreach_supported_types,
)
_ROUND_DIFFERENTLY = (asgd, nadam, radam)
_hooks: list[Any] = []
_CHOICE = "_default_to_fused_or_foreach"


def install() -> None:
    for types in _LISTS:
        if RemoraTensor not in types:
            types.append(RemoraTensor)
    for module in _ROUND_DIFFERENTLY:
        choose = getattr(module, _CHOICE)
        if not hasattr(choose, "_remora"):
            setattr(module, _CHOICE, _as_the_executor(choose))


def _as_the_executor(choose: Any) -> Any:
    @functools.wraps(choose)
    def chosen(params: Any, *args: Any, **kwargs: Any) -> Any:
        if (
            bound.sink is not None
            and bound.device_type == "cpu"
            and any(type(parameter) is RemoraTensor for parameter in params)
        ):
            return False, False
        return choose(params, *args, **kwargs)

    chosen._remora = True  # type: ignore[attr-defined]
    return chosen


def cut_behind_steps() -> None:
    """From now on a segment ends where an optimizer's step does. Idempotent.

    So the segments of a training loop are the same in each turn, and the executor works on a step while the client
    captures the next. A short one waits for company: an optimizer of few parameters among others.
    """
    if not _hooks:
        _hooks.append(optimizer.register_optimizer_step_post_hook(_cut))


def _cut(stepped: Any, args: Any, kwargs: Any) -> None:
    recorder = bound.recorder
    if recorder is not None and recorder.closed is None and recorder.step.rows >= FIRST_CUT_ROWS:
        recorder.cut()


def probe() -> str | None:
    for types in _LISTS:
        if not (torch.Tensor in types and RemoraTensor in types):
            return "a list of tensor classes with foreach support is not what it was"
    for module in _ROUND_DIFFERENTLY:
        if not hasattr(getattr(module, _CHOICE, None), "_remora"):
            return f"{module.__name__} does not choose its form by {_CHOICE}"
    return None
