"""`RemoraTensor`: a torch.Tensor whose data is a named value on an executor."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from remora.capture.value import OUT_BITS, Value
from remora.errors import NotSupported

_make = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
_strided = torch.strided
_set_data = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_OURS = frozenset({"_value", "_root", "_since", "_is_param"})  # what a tensor's __dict__ holds for us


class RemoraTensor(torch.Tensor):
    """A lazy tensor. `_value` names its data; every op on it is recorded by device/dispatch.py.

    _root: the value whose memory it shares, where PyTorch's own view tracking does not tell (device/addresses.py).
    _since: when it took over another value: views made before do not share its memory.
    """

    _value: Value
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    __dlpack_c_exchange_api__ = None

    def __new__(cls, data: torch.Tensor, requires_grad: bool = False) -> torch.Tensor:  # type: ignore[misc]
        """A parameter: programs write `type(parameter)(data, requires_grad=…)`, and this is a parameter's type."""
        return torch.nn.Parameter(data, requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replaced by device/dispatch.py's `record` when the device is registered: no frame is between."""
        raise NotSupported("the remora device is not registered; `import remora` first")

    # -- values

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        from remora.device.printing import text_of

        return text_of(self)

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        if self.dim() == 0:
            return format(self.detach().item(), spec)
        if spec:
            raise TypeError("unsupported format string passed to Tensor.__format__")
        return str(self)

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                f"can't convert {self.device} device type tensor to numpy. "
                "Use Tensor.cpu() to copy the tensor to host memory first."
            )
        return self.detach().cpu().resolve_conj().resolve_neg().numpy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    # -- memory

    def data_ptr(self) -> int:
        from remora.device.addresses import may_compare, refuse_address
        from remora.device.ahead import expect
        from remora.device.storage import address_of

        if may_compare():  # which is what those do who save next
            expect((self,))
            return address_of(self)
        raise refuse_address("data_ptr()")

    const_data_ptr = mutable_data_ptr = data_ptr

    @property
    def __cuda_array_interface__(self) -> Any:
        raise AttributeError(
            f"__cuda_array_interface__ of a {self.device} tensor: its memory is on an executor; use .cpu()"
        )

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        from remora.device.addresses import refuse_address

        raise refuse_address("DLPack")

    def __dlpack_device__(self) -> Any:
        from remora.device.addresses import refuse_address

        raise refuse_address("DLPack")

    def untyped_storage(self) -> Any:
        """Equal `_cdata` for tensors that share memory; the bytes by `.cpu()`."""
        from remora.device.storage import storage_of

        return storage_of(self)

    def _typed_storage(self) -> Any:
        from remora.device.storage import TypedStorage

        return TypedStorage(self.untyped_storage(), self.dtype)

    def is_set_to(self, other: torch.Tensor) -> bool:
        from remora.device.storage import address_of

        return isinstance(other, RemoraTensor) and (
            address_of(self) == address_of(other)
            and self.shape == other.shape
            and self.stride() == other.stride()
        )

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def pin_memory(self, device: Any = None) -> Any:
        raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")

    # PyTorch's own getter: the value without its history, with a version counter of its own.
    data = property(torch.Tensor.data.__get__, lambda self, source: self._set_data(source))  # type: ignore[assignment,attr-defined,attr-defined]

    def _set_data(self, source: torch.Tensor) -> None:
        """Takes over another remora tensor's value, shape and dtype; PyTorch's own setter keeps the old value."""
        if not isinstance(source, torch.Tensor):
            raise TypeError(f"Variable data has to be a tensor, but got {type(source).__name__}")
        if not isinstance(source, RemoraTensor):
            raise NotSupported(
                f"assigning a tensor on {source.device} to .data of a tensor on {self.device}: "
                "move it first (.data = source.to(tensor.device)), or use copy_()"
            )
        with torch._C.DisableTorchFunctionSubclass():
            _set_data(self, source)
            self._take(source._value, source)

    def _take(self, value: Value, source: RemoraTensor) -> None:
        """Names another tensor's value from now on; views of this tensor that exist keep the memory that they have."""
        from remora.device.addresses import root_of
        from remora.device.sink import bound

        recorder, _ = bound.need()
        with recorder.lock:
            now = recorder.segment, recorder.step.rows << OUT_BITS
            root = root_of(source)
            self._value, self._since = value, now
            if root is not value:
                self._root = root
            else:
                self.__dict__.pop("_root", None)

    def set_(self, source: Any = None, storage_offset: int = 0, size: Any = None, stride: Any = None) -> Any:
        """As Tensor.set_: shares the memory of another remora tensor or of its storage from now on."""
        from remora.device.storage import RemoraStorage

        if source is None:
            source = torch.empty(0, dtype=self.dtype, device=self.device)
        if isinstance(source, torch.TypedStorage):
            source = source._untyped_storage
        ours = isinstance(source, (RemoraTensor, RemoraStorage))
        if not ours or source.device != self.device:
            raise RuntimeError(
                f'Attempted to set the storage of a tensor on device "{self.device}" to a storage on different '
                f'device "{getattr(source, "device", type(source).__name__)}".  This is no longer allowed; '
                "the devices must match."
            )
        if isinstance(source, RemoraStorage):
            there = source.tensor(self.dtype, storage_offset, size, stride)
        elif source.dtype is not self.dtype:
            raise RuntimeError(
                f"Could not set tensor of type {source.dtype} to a tensor of type {self.dtype}"
            )
        elif size is None:
            there = source
        else:
            there = source.untyped_storage().tensor(self.dtype, storage_offset, size, stride)
        return super().set_(there)

    def as_subclass(self, cls: Any) -> Any:
        from remora.device.subclass import as_subclass

        return as_subclass(self, cls)

    # -- copies

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As a tensor of any device: memory that is shared is saved once, and is loaded to where it was."""
        from remora.device.ahead import expect
        from remora.device.storage import TypedStorage, saved_as

        torch.utils.hooks.warn_if_has_hooks(self)
        state = {name: item for name, item in self.__dict__.items() if name not in _OURS}
        if self.__dict__.get("_is_param"):
            rebuilt: tuple[Any, ...] = (self.data, self.requires_grad, OrderedDict())
            if state:
                return torch._utils._rebuild_parameter_with_state, (*rebuilt, state)
            return torch._utils._rebuild_parameter, rebuilt
        with torch.no_grad():
            kept = saved_as(self)
        place = kept.storage_offset(), tuple(kept.size()), kept.stride(), self.requires_grad, OrderedDict()
        storage = kept.untyped_storage()
        if storage.root is not None:
            expect((storage.root,))
        if self.dtype in torch.storage._new_dtypes():
            rebuild = torch._utils._rebuild_tensor_v3
            arguments: tuple[Any, ...] = TypedStorage(storage, torch.uint8), *place, self.dtype
        else:
            rebuild = torch._utils._rebuild_tensor_v2
            arguments = TypedStorage(storage, self.dtype), *place
        if state:
            return torch._tensor._rebuild_from_type_v2, (rebuild, torch.Tensor, arguments, state)
        return rebuild, arguments

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        from remora.device.scratch import ghost_of, ghosts
        from remora.device.storage import saved_as

        if ghosts.copies is not None:
            if id(self) not in memo:
                memo[id(self)] = ghost_of(self)
                ghosts.copies.append(memo[id(self)])
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol at the "
                "moment.  If you were attempting to deepcopy a module, this may be because of a "
                "torch.nn.utils.weight_norm usage, see https://github.com/pytorch/pytorch/pull/103001"
            )
        if id(self) in memo:
            return memo[id(self)]
        if self.__dict__.get("_is_param"):  # as Parameter.__deepcopy__: neither gradient nor attributes
            made = memo[id(self)] = torch.nn.Parameter(self.data.clone(), self.requires_grad)
            return made
        with torch.no_grad():
            kept = saved_as(self)
            storage = copy.deepcopy(kept.untyped_storage(), memo)
            made = storage.tensor(kept.dtype, kept.storage_offset(), kept.size(), kept.stride()).detach()
        made.requires_grad_(self.requires_grad)
        memo[id(self)] = made
        if self.grad is not None:
            made.grad = copy.deepcopy(self.grad, memo)
        for name, item in self.__dict__.items():
            if name not in _OURS:
                setattr(made, name, copy.deepcopy(item, memo))
        return made


def wrap(value: Value) -> RemoraTensor:
    """A new tensor for a value."""
    meta = value.meta
    tensor = _make(
        RemoraTensor, meta.shape, meta.stride, meta.offset, None, meta.dtype, _strided, meta.device
    )
    tensor._value = value
    if meta.lazy:
        meta.mark(tensor)
    return tensor  # type: ignore[no-any-return]


def nobodys() -> RemoraTensor:
    """A tensor of one number that no executor has: probes look at it, and no op can be recorded on it."""
    from remora.device.meta import contiguous_meta

    return wrap(Value(None, 0, 0, contiguous_meta((1,), torch.float32)))


def view_of(base: torch.Tensor) -> Callable[[Value], RemoraTensor]:
    """How a view of `base` is wrapped: under inference mode too, a view of a normal tensor is a normal tensor."""
    if base.is_inference() or not torch.is_inference_mode_enabled():
        return wrap
    return torch.inference_mode(False)(wrap)
