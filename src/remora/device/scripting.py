"""TorchScript modules with remora tensors. Their parameters are held in C++, where no tensor can change its class
in place, and saved from there, past everything that knows how to fetch a remora tensor."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch.jit import _script, _serialization

from remora.device.tensor import RemoraTensor
from remora.errors import NotSupported

_Module = _script.RecursiveScriptModule


def install() -> None:
    """Idempotent."""
    if hasattr(_Module._apply, "_remora_scripted"):
        return
    save, to_buffer = _refusing(_Module.save), _refusing(_Module.save_to_buffer)
    for kind in (_Module, torch.jit.ScriptModule):  # traced modules are of the second
        kind._apply = _moving(kind._apply)
        kind.save, kind.save_to_buffer = save, to_buffer
    _serialization.load = torch.jit.load = _loading(_serialization.load)


def _moving(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`to()` and its like: a parameter that comes to remora, or leaves it, is a new one; ties stay ties."""

    @functools.wraps(apply)
    def moved(self: Any, fn: Any, recurse: bool = True) -> Any:
        first = next(chain(self.parameters(), self.buffers()), None)
        if first is None or isinstance(first, RemoraTensor) == isinstance(fn(first), RemoraTensor):
            return apply(self, fn, recurse)
        known: dict[
            int, tuple[torch.Tensor, torch.Tensor]
        ] = {}  # the old one lives on, so that its id stays its own
        for module in self.modules() if recurse else (self,):
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None:
                    continue
                if id(tensor) not in known:
                    known[id(tensor)] = tensor, _converted(tensor, fn)
                module._c.setattr(name, known[id(tensor)][1])
        return self

    moved._remora_scripted = True  # type: ignore[attr-defined]
    return moved


def _converted(tensor: torch.Tensor, fn: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        new = fn(tensor)
    if not isinstance(tensor, torch.nn.Parameter):
        return new
    parameter = torch.nn.Parameter(new, tensor.requires_grad)
    if tensor.grad is not None:
        parameter.grad = fn(tensor.grad)
    return parameter


def _refusing(save: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(save)
    def saved(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(tensor, RemoraTensor) for tensor in chain(self.parameters(), self.buffers())):
            raise NotSupported(
                "a TorchScript module with remora tensors cannot be saved: their data is on an executor. "
                'Move it first: module.to("cpu").save(…)'
            )
        return save(self, *args, **kwargs)

    return saved


def _loading(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def loaded(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if map_location is None or torch.device(map_location).type != "remora":
            return load(f, map_location, *args, **kwargs)
        return load(f, "cpu", *args, **kwargs).to(map_location)

    return loaded


def probe() -> str | None:
    return (
        None if hasattr(_Module._apply, "_remora_scripted") else "TorchScript modules cannot move to remora"
    )
