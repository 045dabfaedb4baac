"""Ops that are more than a row: they move data between client and executor."""

from __future__ import annotations

from typing import Any

import torch

from remora.device import tensor as tensors
from remora.device.download import download
from remora.device.shadow import known
from remora.device.tensor import RemoraTensor, wrap
from remora.device.upload import upload
from remora.errors import NotSupported

aten = torch.ops.aten


def _item(func: Any, args: Any, kwargs: Any) -> Any:
    value = args[0]._value
    local = known(value)
    if local is not None:
        return local.item()
    return download(args[0]).item()


def _to_copy(func: Any, args: Any, kwargs: Any) -> Any:
    source = args[0]
    device = kwargs.get("device")
    target = torch.device(device) if device is not None else source.device
    rest = {
        name: value
        for name, value in kwargs.items()
        if name not in ("device", "non_blocking", "pin_memory", "layout") and value is not None
    }
    if isinstance(source, RemoraTensor):
        if target.type == "remora":
            _only_device(target)
            if device is None and "non_blocking" not in kwargs:
                return NotImplemented
            from remora.device.dispatch import record

            return record(func, (source,), rest, 4)
        local = download(source)
        return func(local, **{**rest, "device": target}) if rest or target.type != "cpu" else local
    if target.type == "remora":
        _only_device(target)
        return upload(func(source, **rest) if rest else source)
    return NotImplemented


def _only_device(device: torch.device) -> None:
    if device.index not in (None, tensors.DEVICE.index):
        raise RuntimeError(f"{device} does not exist: this session has one executor, remora:0")


def _copy(func: Any, args: Any, kwargs: Any) -> Any:
    target, source = args[0], args[1]
    if not isinstance(target, RemoraTensor):
        return target.copy_(download(source))
    if isinstance(source, RemoraTensor) and len(args) == 2:
        return NotImplemented
    from remora.device.dispatch import record

    if not isinstance(source, RemoraTensor):
        source = upload(source.to(target.dtype) if source.dtype != target.dtype else source)
    return record(aten.copy_.default, (target, source), {}, 4)


def _same(func: Any, args: Any, kwargs: Any) -> Any:
    """Another tensor for the same value: detach and alias cost no row."""
    return wrap(args[0]._value)


def _itself(func: Any, args: Any, kwargs: Any) -> Any:
    return args[0]


def _equal(func: Any, args: Any, kwargs: Any) -> Any:
    first, second = args
    if first.shape != second.shape:
        return False
    return bool((first == second).all().item())


def _refuse_generator(func: Any, args: Any, kwargs: Any) -> Any:
    raise NotSupported("a torch.Generator for the remora device; seed it with torch.manual_seed()")


SPECIAL: dict[Any, Any] = {
    aten._local_scalar_dense.default: _item,
    aten._to_copy.default: _to_copy,
    aten.copy_.default: _copy,
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.lift_fresh.default: _itself,
    aten.equal.default: _equal,
}
