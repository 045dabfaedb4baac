"""Kernels as this executor calls them: where PyTorch's own would show memory that nobody set, let a storage grow
unweighed, or follow indices out of its inputs, what is called here does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from remora.errors import UnsupportedOp
from remora.ir.node import Node
from remora.ops.own import RESIZED
from remora.ops.schema import traits

Kernel = Callable[..., Any]

_UNSET = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted"}


def kernel_of(op: Any, node: Node, exact: bool = True) -> Kernel:
    """What a row calls, with its arguments in the node's order: positional, then keywords.

    exact: the kernels that PyTorch itself would choose.
    """
    base = op._schema.name.split("::")[1]
    known = traits(op)
    # `_op` is what an OpOverload calls: a third of the time of a small op is the call around it
    call: Kernel = op._op
    if known.returns_scalar:
        call = _scalar(op)
    elif base in _UNSET:
        call = _zero_filled(op)
    elif base in _SEGMENTS:
        call = _checked_segments(op)
    elif base == "scaled_dot_product_attention" and not exact:
        call = _attention(op)
    names = tuple(name for name, _ in node.kwargs)
    if names:
        call = _with_keywords(call, names, len(node.args))
    outs = {argument.name for argument in op._schema.arguments if argument.is_out}
    if places := tuple(at for at, name in enumerate(names, len(node.args)) if name in outs):
        call = _without_growth(call, places)
    return call


def grows(op: Any) -> bool:
    """Whether the op may make the storage of an input larger, which then weighs more."""
    return op is RESIZED


def _attention(op: Any) -> Kernel:
    """cuDNN makes a plan, in some 40 ms, for each length of keys that it has not seen, and a decode step has a new one
    each time: queries of one token go to the kernel that comes next."""
    call = op._op
    by_cudnn, by_flash = torch._C._get_cudnn_sdp_enabled, torch._C._get_flash_sdp_enabled
    set_cudnn = torch._C._set_sdp_use_cudnn

    def attend(query: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        if query.shape[-2] != 1 or not by_cudnn() or not by_flash():
            return call(query, *rest, **named)  # type: ignore[no-any-return]
        set_cudnn(False)
        try:
            return call(query, *rest, **named)  # type: ignore[no-any-return]
        finally:
            set_cudnn(True)

    return attend


def _scalar(op: Any) -> Kernel:
    return lambda *args, **kwargs: torch.tensor(op(*args, **kwargs))


def _with_keywords(call: Kernel, names: tuple[str, ...], n_args: int) -> Kernel:
    def with_keywords(*items: Any) -> Any:
        return call(*items[:n_args], **dict(zip(names, items[n_args:], strict=True)))

    return with_keywords


def _zero_filled(op: Any) -> Kernel:
    """Memory that was another session's must not be read: what PyTorch leaves unset is zeroed."""

    def zeroed(*args: Any, **kwargs: Any) -> torch.Tensor:
        made: torch.Tensor = op(*args, **kwargs)
        if _fills():
            return made
        if made.untyped_storage().nbytes() == made.numel() * made.element_size():
            return made.zero_()
        span = made.untyped_storage().nbytes() // made.element_size()
        made.as_strided((span,), (1,), 0).zero_()  # strides may leave gaps, or overlap
        return made

    return zeroed


def _fills() -> bool:
    """Whether PyTorch itself sets what it allocates, to values that show."""
    return bool(
        torch._C._get_deterministic_algorithms() and torch._C._get_deterministic_fill_uninitialized_memory()
    )


def _without_growth(call: Kernel, places: tuple[int, ...]) -> Kernel:
    """A storage is weighed when it gets its first name, so that an `out=` must not enlarge it afterwards."""

    def checked(*items: Any) -> Any:
        outs = [out for at in places for out in (items[at] if isinstance(items[at], list) else [items[at]])]
        known = [(out, out.untyped_storage(), out.untyped_storage().nbytes()) for out in outs]
        try:
            return call(*items)
        finally:
            if any(storage.nbytes() > nbytes for _, storage, nbytes in known):
                _shrink(known)

    return checked


def _shrink(known: list[tuple[torch.Tensor, Any, int]]) -> None:
    for out, storage, nbytes in known:
        if storage.nbytes() > nbytes:
            storage.resize_(nbytes)
            out.set_(storage, 0, (0,), (1,))
    raise UnsupportedOp("a result does not fit into the tensor given as out=")


# -- segments: the kernels follow lengths and offsets that nothing checks

_SEGMENTS = {"segment_reduce", "_segment_reduce_backward"}


def _checked_segments(op: Any) -> Kernel:
    backward = op._opname == "_segment_reduce_backward"

    def checked(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip((a.name for a in op._schema.arguments), args, strict=False)), **kwargs}
        data, axis = given["data"], given.get("axis", 0)
        lengths, offsets = given.get("lengths"), given.get("offsets")
        if given.get("indices") is not None:
            raise UnsupportedOp("segment_reduce by indices is not allowed on this executor")
        n = _segments(data, axis, lengths, offsets)
        if backward:
            shape = (*data.shape[:axis], n, *data.shape[axis + 1 :])
            for name in ("grad", "output"):
                if given[name].shape != shape or given[name].dtype != data.dtype:
                    raise ValueError(
                        f"{name} of shape {tuple(given[name].shape)} for segments {tuple(shape)}"
                    )
        return op(*args, **kwargs)

    return checked


def _segments(data: Any, axis: int, lengths: Any, offsets: Any) -> int:
    """How many segments there are along `axis`. Raises ValueError unless all lie inside of `data`."""
    bounds = offsets if offsets is not None else lengths
    if bounds is None or bounds.dim() != axis + 1 or bounds.shape[:-1] != data.shape[:axis] or not data.dim():
        raise ValueError("segment_reduce needs lengths or offsets with one dimension more than the axis")
    size = data.shape[axis]
    if offsets is None:
        inside = bool((lengths >= 0).all()) and bool((lengths.sum(-1) <= size).all())
        inside = inside and bool((lengths <= size).all())  # a sum may wrap around
        n = lengths.shape[-1]
    else:
        steps = offsets.diff(dim=-1)
        inside = bool((offsets >= 0).all()) and bool((offsets <= size).all()) and bool((steps >= 0).all())
        n = offsets.shape[-1] - 1
    if not inside or n < 0:
        raise ValueError(f"segments reach beyond the {size} elements along axis {axis}")
    return int(n)
