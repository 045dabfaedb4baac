"""`RemoraTensor`: a torch.Tensor whose data is a named value on an executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from remora.capture.value import Value
from remora.errors import NotSupported

_make = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
_strided = torch.strided
DEVICE: Any = None  # torch.device("remora", 0), set when the device is registered


class RemoraTensor(torch.Tensor):
    """A lazy tensor. `_value` names its data; every op on it is recorded by device/dispatch.py."""

    _value: Value
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, data: torch.Tensor, requires_grad: bool = False) -> torch.Tensor:  # type: ignore[misc]
        """A parameter: programs write `type(parameter)(data, requires_grad=…)`, and this is a parameter's type."""
        return torch.nn.Parameter(data, requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replaced by device/dispatch.py's `record` when the device is registered: no frame is between."""
        raise NotSupported("the remora device is not registered; `import remora` first")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        text = self.detach().cpu().__repr__()
        grad = f", grad_fn=<{type(self.grad_fn).__name__}>" if self.grad_fn is not None else ""
        if self.is_leaf and self.requires_grad:
            grad = ", requires_grad=True"
        return f"{text[:-1]}, device='{self.device}'{grad})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        if self.dim() == 0:
            return format(self.item(), spec)  # programs make names of numbers: f"expert_{index}"
        return str(self) if not spec else format(str(self), spec)

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                "can't convert a remora tensor to numpy: it lives on an executor. Use Tensor.cpu() first"
            )
        return self.detach().cpu().numpy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    def data_ptr(self) -> int:
        raise NotSupported(
            "data_ptr() of a remora tensor: its memory is on an executor and has no address here. "
            "Use .cpu() for a local copy"
        )

    @property
    def data(self) -> torch.Tensor:
        """The same value without its history, with a version counter of its own."""
        return wrap(self._value)

    @data.setter
    def data(self, source: torch.Tensor) -> None:
        """Takes over another remora tensor's value; PyTorch's own setter would silently keep the old one."""
        if not isinstance(source, RemoraTensor) or source._value.meta is not self._value.meta:
            raise NotSupported(
                "assigning .data of a remora tensor needs a remora tensor of the same shape, strides and dtype; "
                "use copy_() or torch.utils.swap_tensors()"
            )
        self._value = source._value

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles, and so torch.save, hold a CPU copy: what is loaded is a CPU tensor."""
        copy = self.detach().cpu()
        if isinstance(self, torch.nn.Parameter):
            return torch.nn.Parameter(copy, self.requires_grad).__reduce_ex__(protocol)
        return copy.requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        copy = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        else:
            copy.requires_grad_(self.requires_grad)
        memo[id(self)] = copy
        return copy


def wrap(value: Value) -> RemoraTensor:
    """A new tensor for a value."""
    meta = value.meta
    tensor = _make(RemoraTensor, meta.shape, meta.stride, meta.offset, None, meta.dtype, _strided, DEVICE)
    tensor._value = value
    if meta.lazy:
        meta.mark(tensor)
    return tensor  # type: ignore[no-any-return]


def view_of(base: torch.Tensor) -> Callable[[Value], RemoraTensor]:
    """How a view of `base` is wrapped: under inference mode too, a view of a normal tensor is a normal tensor."""
    if base.is_inference() or not torch.is_inference_mode_enabled():
        return wrap
    return torch.inference_mode(False)(wrap)
