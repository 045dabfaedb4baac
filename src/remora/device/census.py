"""Which values of a session this process still holds: for the error that says they are lost."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from remora.device.tensor import RemoraTensor

_MAX_NAMES = 3


def living(session: str, counts: Callable[[Any], bool] = lambda value: True) -> str:
    """In words: how many tensors, how much memory, and whose weights. Looks at every object: for rare moments.

    '' if there are none.

    Args:
        counts: whether a value of the session is asked about.
    """
    values: dict[int, Any] = {}
    models: list[torch.nn.Module] = []
    inner: set[int] = set()
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, RemoraTensor):
            value = getattr(thing, "_value", None)
            if (
                value is not None
                and value.home is not None
                and value.home.session == session
                and counts(value)
            ):
                values[id(value)] = value
        elif issubclass(kind, torch.nn.Module) and "_modules" in thing.__dict__:
            models.append(thing)
            inner.update(id(child) for child in thing._modules.values())
    if not values:
        return ""
    nbytes = sum(v.meta.shape.numel() * v.meta.dtype.itemsize for v in values.values() if v.meta is not None)
    texts = [f"{len(values)} tensors, {nbytes:,} bytes"]
    for model in models:
        names = [name for name, weight in model.named_parameters() if _value(weight) in values]
        if id(model) in inner or not names:
            continue
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        texts.append(f"weights of {type(model).__name__} ({', '.join(names[:_MAX_NAMES])}{more})")
    return ", among them ".join([texts[0], " and ".join(texts[1:])]) if len(texts) > 1 else texts[0]


def _value(weight: Any) -> int:
    return id(getattr(weight, "_value", None))
