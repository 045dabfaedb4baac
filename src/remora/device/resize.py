"""Tensors that change their own shape: in-place views, `resize_`, `set_`, and results written with `out=`.

On the executor a value never changes its shape. The tensor here takes another value instead, which is a view of
the same storage, and changes its own sizes; other tensors for the old value (`detach()`) keep theirs, as they do
in PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch

from remora.capture.value import Value
from remora.device.addresses import reshaped
from remora.device.infer import OutChanges, Outcome, remora_tensors
from remora.device.meta import CONJ, NEG, TensorMeta, intern, meta_of
from remora.device.tensor import RemoraTensor
from remora.errors import NotSupported
from remora.ops.layout import Meta
from remora.ops.own import RESIZED
from remora.ops.schema import functional_of, op_name, traits

aten = torch.ops.aten
_set = aten.set_.source_Storage_storage_offset
_storage = torch.Tensor.untyped_storage  # of no bytes; RemoraTensor's stands for those on the executor
_HERE = 5  # frames from `record` to the program: record_view, the special op, learn, record


def rebind(tensor: RemoraTensor, value: Value) -> None:
    """Lets a tensor name another view of its memory, and gives it that value's sizes, strides and offset."""
    reshaped(tensor, value)
    _become(tensor, value)


def _become(tensor: RemoraTensor, value: Value) -> None:
    meta = value.meta
    same = tensor._value.meta is meta
    tensor._value = value
    if same:
        return
    included = torch._C._meta_in_tls_dispatch_include()
    with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowADInplaceOrView():
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:  # PyTorch's kernel for tensors without data, on a tensor whose data is elsewhere
            _set(tensor, _storage(tensor), meta.offset, meta.shape, meta.stride)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(included)
    meta.mark(tensor)


def resize_to(tensor: RemoraTensor, target: TensorMeta, depth: int) -> None:
    """Gives a tensor the sizes, strides and offset of `target` over its own storage, which grows if it must."""
    from remora.device.dispatch import record

    target = target.at(tensor._value.meta.index)
    if target is not tensor._value.meta:
        outcome = Outcome((target,), True, is_view=True, stale=(0,))
        args = (tensor, list(target.shape), list(target.stride), target.offset)
        rebind(tensor, record(RESIZED, (), args, None, depth + 1, outcome)._value)


def grown(root: RemoraTensor, size: int) -> RemoraTensor:
    """All elements of memory that became more than its root has, in one dimension."""
    from remora.device.dispatch import record

    target = intern(Meta((size,), (1,), 0, root.dtype), 0, root._value.meta.index)
    made: RemoraTensor = record(
        RESIZED, (), (root, [size], [1], 0), None, 2, Outcome((target,), True, is_view=True)
    )
    made._root = root._value
    return made


def _viewed(view: Any) -> Any:
    """An in-place view is the view, taken over by the tensor itself."""

    def change(func: Any, args: Any, kwargs: Any) -> Any:
        from remora.device.dispatch import record

        tensor = args[0]
        rebind(tensor, record(view, (), args, kwargs, _HERE - 1)._value)
        return tensor

    return change


def _resize(func: Any, args: Any, kwargs: Any) -> Any:
    """`resize_`, `resize_as_`: PyTorch says on the meta device what the tensor looks like afterwards."""
    tensor = args[0]
    rest = [item._value.meta.example() if isinstance(item, RemoraTensor) else item for item in args[1:]]
    changed = func(tensor._value.meta.fresh_example(), *rest, **kwargs)
    resize_to(tensor, meta_of(changed), _HERE - 1)
    return tensor


def _set_source(func: Any, args: Any, kwargs: Any) -> Any:
    """`set_` to another tensor: shares its storage from here on."""
    tensor, source = args[0], args[1]
    if not isinstance(source, RemoraTensor) or source.dtype != tensor.dtype:
        raise NotSupported("set_() of a remora tensor needs another remora tensor of the same dtype")
    from remora.device.dispatch import record

    alike = source
    # the bytes are taken over, and not what is lazy
    differ = source._value.meta.lazy ^ tensor._value.meta.lazy
    for bit, view in ((CONJ, aten._conj.default), (NEG, aten._neg_view.default)):
        if differ & bit:
            alike = record(view, (), (alike,), None, _HERE - 1)
    _become(tensor, alike._value)
    tensor._take(alike._value, source)
    return tensor


def _set_empty(func: Any, args: Any, kwargs: Any) -> Any:
    from remora.device.dispatch import record

    made = record(aten.new_empty.default, (), (args[0], [0]), None, _HERE - 1)
    _become(args[0], made._value)
    args[0]._take(made._value, made)
    return args[0]


def write_out(changes: OutChanges, func: Any, args: Any, kwargs: Any, depth: int) -> Any:
    """An `out=` call that changes the shape of a tensor that it writes.

    Where the new shapes are known, the tensors take them first, and the call is recorded. Where only the data
    tells, the call is made without `out=`, and its results are copied.
    """
    from remora.device.dispatch import record

    for tensor, target in changes.known:
        resize_to(tensor, target, depth + 1)
    if changes.known:
        return record(func, (), args, kwargs, depth + 1)
    functional = functional_of(func)
    if functional is None:
        raise NotSupported(f"{op_name(func)} writes results whose shape only the data tells")
    outs = [argument.name for argument in func._schema.arguments if argument.is_out]
    rest = {name: item for name, item in kwargs.items() if name not in outs}
    results = record(functional, (), args, rest, depth + 1)
    targets = remora_tensors([kwargs[name] for name in outs])
    for target, result in zip(targets, remora_tensors([results]), strict=True):
        if target.shape != result.shape:
            meta = result._value.meta
            resize_to(
                target,
                intern(Meta(tuple(meta.shape), meta.stride, target.storage_offset(), target.dtype)),
                depth + 1,
            )
        record(aten.copy_.default, (), (target, result), None, depth + 1)
    if not traits(func).n_returns:
        return None
    return targets[0] if len(func._schema.returns) == 1 else tuple(targets)


def through_copy(op: Any) -> Any:
    """A kernel for a composite `out=` op that would never write into a tensor subclass, or would trip over it."""
    functional = functional_of(op)
    names = [argument.name for argument in op._schema.arguments if argument.is_out]
    assert functional is not None

    def kernel(*args: Any, **kwargs: Any) -> Any:
        (target,) = (kwargs.pop(name) for name in names)
        result = functional(*args, **kwargs)
        if target.shape != result.shape:
            target.resize_(result.shape)
        return target.copy_(result)

    return kernel


IN_PLACE_VIEWS = {
    aten.t_.default: aten.t.default,
    aten.transpose_.default: aten.transpose.int,
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.as_strided_.default: aten.as_strided.default,
}
SHAPE_CHANGES: dict[Any, Any] = {
    **{func: _viewed(view) for func, view in IN_PLACE_VIEWS.items()},
    aten.resize_.default: _resize,
    aten.resize_as_.default: _resize,
    aten.set_.source_Tensor: _set_source,
    aten.set_.default: _set_empty,
}
