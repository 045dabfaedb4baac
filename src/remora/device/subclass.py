"""Subclasses of torch.Tensor on the device: a class that is the program's and a RemoraTensor too.

Such tensors take the slow way through device/dispatch.py (`_with_uploads`), which records the RemoraTensor in them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.parameter import UninitializedTensorMixin

from remora.device.tensor import RemoraTensor, wrap
from remora.errors import NotSupported

_origins: dict[type, type] = {}  # of classes on the device, the program's own


@functools.cache
def there(cls: type) -> type:
    """The class of tensors on the device that are instances of `cls`."""
    if issubclass(cls, RemoraTensor):
        return cls
    if cls in (torch.Tensor, torch.nn.Parameter):
        return RemoraTensor
    if cls.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:  # type: ignore[attr-defined]
        raise NotSupported(
            f"{cls.__name__}, a tensor subclass with a __torch_dispatch__ of its own, around memory of a remora "
            "tensor; hold the remora tensor in an attribute instead, as wrapper subclasses do"
        )
    made: Any = type(cls)(cls.__name__, (cls, RemoraTensor), {"__module__": cls.__module__})
    _origins[made] = cls

    def torch_function(_: type, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls.__torch_function__(func, tuple(_origins.get(t, t) for t in types), args, kwargs)  # type: ignore[attr-defined]

    # set behind the making, which takes PyTorch's default away from classes with a __torch_dispatch__
    made.__torch_function__ = classmethod(torch_function)
    if issubclass(cls, UninitializedTensorMixin):
        made.cls_to_become = RemoraTensor
    return made  # type: ignore[no-any-return]


def as_subclass(tensor: RemoraTensor, cls: type) -> Any:
    """Another tensor for the same value, of the given class; differentiable, as Tensor.as_subclass."""
    with torch._C.DisableTorchFunctionSubclass():
        made: Any = torch.ops.aten.alias.default(tensor)
    made.__class__ = there(cls)
    if issubclass(cls, torch.nn.Parameter):
        made._is_param = True
    return made


def plain_arguments(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a call with tensors as the recorder knows them."""

    def plain(item: Any) -> Any:
        if isinstance(item, RemoraTensor):
            return item if type(item) is RemoraTensor else wrap(item._value)
        return [plain(x) for x in item] if isinstance(item, (list, tuple)) else item

    return tuple(map(plain, args)), {name: plain(item) for name, item in (kwargs or {}).items()}


def replace_make_subclass() -> None:
    original = torch.Tensor._make_subclass  # type: ignore[attr-defined]
    if hasattr(original, "_remora"):
        return

    @functools.wraps(original)
    def _make_subclass(cls: type, data: Any, require_grad: bool = False, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(data, RemoraTensor):
            return original(cls, data, require_grad, *args, **kwargs)
        made = as_subclass(data.detach(), cls)
        with torch._C.DisableTorchFunctionSubclass():
            made.requires_grad_(require_grad)
        return made

    _make_subclass._remora = True  # type: ignore[attr-defined]
    torch.Tensor._make_subclass = staticmethod(_make_subclass)  # type: ignore[attr-defined]


def probe_make_subclass() -> str | None:
    made = torch.Tensor._make_subclass(torch.nn.Parameter, torch.zeros(1), True)  # type: ignore[attr-defined]
    return (
        None
        if type(made) is torch.nn.Parameter and made.requires_grad
        else "parameters are not made any more"
    )
