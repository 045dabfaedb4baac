"""Calls that meet several devices: which one a call is on, and values that go from one to another.

A value that goes is copied on its own device first. So a row reads nothing of another device but what no row
writes, and each device keeps the order of its own reads and writes, as it has it alone.
"""

from __future__ import annotations

from typing import Any

import torch

from remora.device.index import device_at, index_of
from remora.device.infer import Outcome, remora_tensors
from remora.device.other_torch import for_each, of_each
from remora.device.rng import generator_of
from remora.device.tensor import RemoraTensor
from remora.ops.schema import traits

aten = torch.ops.aten
_INDEXED_WRITES = frozenset({"index_put_", "index_put", "_index_put_impl_", "_unsafe_index_put"})


def index_of_call(func: Any, args: Any, kwargs: Any) -> int:
    """The index of the device that a call runs on, and where its results are.

    Raises:
        RuntimeError: its tensors, or the generator that it draws from, are on different devices.
    """
    found = _indices(args, kwargs)
    if len(found) > 1:
        first, second = sorted(found)[:2]
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"remora:{first} and remora:{second}! (when calling {func})"
        )
    given = _given(func, args, kwargs)
    index = index_of(given) if given is not None else min(found, default=0)
    for item in (*args, *kwargs.values()):
        if isinstance(item, torch._C.Generator):
            generator = generator_of(item)
            if generator.index != index:
                raise RuntimeError(
                    f"Expected a generator of remora:{index} but found one of {generator.device} (when calling {func})"
                )
    return index


def across(func: Any, args: Any, kwargs: Any, depth: int) -> Any:
    """The result of a call with tensors on several devices that PyTorch allows, or that has a device without an
    index or other than its tensors'; NotImplemented for any other call."""
    from remora.device.dispatch import record

    found = _indices(args, kwargs)
    if len(found) > 1:
        each = of_each(func)
        if each is not None:
            return for_each(each, args, kwargs)
        if func._opname in _INDEXED_WRITES and args[2].dim() == 0:
            values = moved(args[2], args[0]._value.meta.index, depth + 1)
            return record(func, (), (*args[:2], values, *args[3:]), kwargs, depth + 1)
        return NotImplemented
    given = _given(func, args, kwargs)
    if given is None:
        return NotImplemented
    index = index_of(given)
    if given.index is None:
        args, kwargs = _replaced((torch.device, device_at(index)), args, kwargs)
        return record(func, (), args, kwargs, depth + 1)
    if not found or index in found:
        return NotImplemented
    (example,) = remora_tensors((*args, *kwargs.values()))[
        :1
    ]  # only what it looks like matters: `zeros_like`
    meta = example._value.meta
    blank = record(
        aten.empty_strided.default,
        (),
        (list(meta.shape), list(meta.stride)),
        {"dtype": meta.dtype, "device": device_at(index)},
        depth + 1,
    )
    args, kwargs = _replaced((RemoraTensor, blank), args, kwargs)
    return record(func, (), args, kwargs, depth + 1)


def moved(source: RemoraTensor, index: int, depth: int, kwargs: Any = None) -> RemoraTensor:
    """A copy on another device. kwargs: of `_to_copy`, without a device."""
    from remora.device.dispatch import outcome_of, record

    kwargs = kwargs or {}
    dtype = kwargs.get("dtype", source.dtype)
    narrower = dtype.itemsize < source.dtype.itemsize
    snapshot = (
        record(aten._to_copy.default, (), (source,), {"dtype": dtype}, depth + 1)
        if narrower
        else record(aten.clone.default, (), (source,), None, depth + 1)
    )
    outcome: Outcome = outcome_of(aten._to_copy.default, (snapshot,), kwargs).at(index)
    there = {**kwargs, "device": device_at(index)}
    return record(aten._to_copy.default, (), (snapshot,), there, depth + 1, outcome)  # type: ignore[no-any-return]


def _indices(args: Any, kwargs: Any) -> set[int]:
    return {tensor._value.meta.index for tensor in remora_tensors((*args, *kwargs.values()))}


def _given(func: Any, args: Any, kwargs: Any) -> torch.device | None:
    place = traits(func).device_arg
    if place is None:
        return None
    device = kwargs.get(place) if isinstance(place, str) else args[place] if place < len(args) else None
    return device if isinstance(device, torch.device) and device.type == "remora" else None


def _replaced(by: tuple[type, Any], args: Any, kwargs: Any) -> tuple[Any, Any]:
    kind, instead = by

    def replace(item: Any) -> Any:
        return instead if isinstance(item, kind) else item

    return tuple(map(replace, args)), {name: replace(item) for name, item in kwargs.items()}
