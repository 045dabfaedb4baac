"""Passes the program's calls of PyTorch's flag setters on to the executor, in order with its ops.

A flag such as `torch.use_deterministic_algorithms` is read by kernels, and those run elsewhere. Nothing is looked
at when an op is recorded: the setters themselves tell.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.backends import ContextProp

from remora.device.sink import Sink, bound
from remora.ops.flags import ENTANGLED, FLAGS, PREFERENCES, PRISTINE, Values, current, key_of, values_of

_told: dict[tuple[str, ...], Values] = dict(PRISTINE)  # the last calls, by what they set
_MARK = "_remora"


def announce(sink: Sink) -> None:
    """Tells a new session's executor what differs from what PyTorch starts with."""
    flush = _told[("set_flush_denormal",)]
    for setter, values in [*current()[:-1], ("set_flush_denormal", flush)]:
        key = key_of(setter, values)
        # older versions have fewer settings, and shorter ones
        first = PRISTINE.get(key, values)[: len(values)]
        if setter not in PREFERENCES and values != first:
            sink.flag(setter, values)
        _told[key] = values


def _changed(setter: str, values: Values) -> None:
    key = key_of(setter, values)
    if _told.get(key) == values and setter not in ENTANGLED:
        return
    _told[key] = values
    if bound.sink is not None:
        bound.sink.flag(setter, values)


def watch_setters() -> None:
    for setter, flag in FLAGS.items():
        original = getattr(flag.owner, setter, None)
        if original is not None and not hasattr(original, _MARK):
            setattr(flag.owner, setter, _telling(original, setter))
    for module in (torch.backends.cudnn, torch.backends.mkldnn, torch.backends):
        for prop in vars(type(module)).values():  # they keep the C functions that they found
            if isinstance(prop, ContextProp) and getattr(prop.setter, "__name__", "") in FLAGS:
                prop.setter = getattr(torch._C, prop.setter.__name__)


def _telling(original: Any, setter: str) -> Any:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        _changed(setter, values_of(args, kwargs))
        return result

    setattr(call, _MARK, True)
    return call


def probe_setters() -> str | None:
    missing = [n for n, f in FLAGS.items() if f.exists and not hasattr(getattr(f.owner, n), _MARK)]
    props = vars(type(torch.backends.cudnn))
    missing += [n for n in ("enabled", "deterministic") if not hasattr(props[n].setter, _MARK)]
    return f"setters that tell nobody: {', '.join(missing)}" if missing else None
