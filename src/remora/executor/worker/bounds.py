"""Indices on a GPU: PyTorch's kernels stop the whole device at one that is out of range, which no process outlives.
What runs ahead may well reach beyond a table's end, where the program itself stops in time. So indices are brought
into range before a kernel sees them, and a flag on the device remembers that one was not; the flag is read where the
host waits for the device anyway. What ran since is then undone if it ran ahead, and ends the worker if it did not, as
it would have without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from remora.executor.worker.failure import OutOfRange
from remora.executor.worker.kernels import Kernel
from remora.ir.node import Node

_ALONG = frozenset(
    {"index_select", "gather", "index_copy", "index_fill", "index_add", "index_reduce"}
    | {"scatter", "scatter_add", "scatter_reduce"}
)
_BY_LISTS = frozenset({"index", "index_put", "_index_put_impl"})
_CUTS = frozenset({"aten::slice", "aten::narrow", "aten::narrow_copy", "aten::slice_copy"})
_INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a call has its tensor, its dimension (None: the first one), its index or list of them."""

    tensor: int
    dim: int | None
    index: int
    from_end: bool  # negative indices count from the end


class Bounds:
    """The flag of one session."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flag: torch.Tensor | None = None
        self.ahead = False  # what runs now was not said by the client

    def check(self) -> None:
        """Waits for the device. Raises OutOfRange, once."""
        self.judge(self._flag)

    def on_its_way(self) -> torch.Tensor | None:
        """The flag as it is at this place of the stream, for `judge` once it has come to the host."""
        return None if self._flag is None else self._flag.to("cpu", non_blocking=True)

    def judge(self, flag: torch.Tensor | None) -> None:
        """Raises OutOfRange, once, if this one, which was read, is set."""
        if self._flag is not None and flag is not None and flag.item():
            self._flag.zero_()
            raise OutOfRange("index out of range in self")

    def state(self) -> torch.Tensor | None:
        """The flag as it is at this place of the stream; waits for nothing."""
        return None if self._flag is None else self._flag.clone()

    def back_to(self, state: torch.Tensor | None) -> None:
        if state is not None and self._flag is not None:
            self._flag.copy_(state)
        elif self._flag is not None:
            self._flag.zero_()

    def checked(self, op: Any, node: Node, call: Kernel) -> Kernel:
        """What a row calls instead of `call`, which may be that."""
        if op._schema.name in _CUTS:
            return self._not_empty(call)
        places = _places(op, node)
        if places is None:
            return call
        at = places

        def within(*items: Any) -> Any:
            tensor, dim = items[at.tensor], 0 if at.dim is None else items[at.dim]
            index = items[at.index]
            args = list(items)
            if isinstance(index, (list, tuple)):
                dims = _dims(index)
                args[at.index] = [
                    self._within(one, tensor.shape[d], at.from_end) if d is not None else one
                    for one, d in zip(index, dims, strict=True)
                ]
            elif tensor.dim():
                args[at.index] = self._within(index, tensor.shape[dim], at.from_end)
            return call(*args)

        return within

    def _not_empty(self, call: Kernel) -> Kernel:
        """A loop that counts on may end where its tensor does; behind that is nothing, which not every kernel bears."""

        def cut(*items: Any) -> Any:
            made = call(*items)
            if self.ahead and not made.numel() and items[0].numel():
                raise IndexError("nothing is left to run ahead with")
            return made

        return cut

    def _within(self, index: torch.Tensor, size: int, from_end: bool) -> torch.Tensor:
        if index.dtype not in _INTEGERS or not index.numel() or not size:
            return index
        if self._flag is None:
            self._flag = torch.zeros((), dtype=torch.bool, device=self._device)
        near = index.clamp(-size if from_end else 0, size - 1)
        self._flag.logical_or_((near != index).any())
        return near


def _dims(indices: Any) -> list[int | None]:
    """The dimension that each of a list indexes; None for one that is absent, or a mask."""
    dims: list[int | None] = []
    at = 0
    for index in indices:
        mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        dims.append(None if index is None or mask else at)
        at += index.dim() if mask else 1
    return dims


def _places(op: Any, node: Node) -> _Places | None:
    schema = op._schema
    namespace, _, base = schema.name.partition("::")
    base = base.rstrip("_")
    if namespace != "aten":
        return None
    arguments = [argument.name for argument in schema.arguments]
    position = {name: at for at, name in enumerate(arguments[: len(node.args)])}
    position |= {name: at for at, (name, _) in enumerate(node.kwargs, len(node.args))}
    if base == "embedding":
        names: tuple[str, str | None, str] = ("weight", None, "indices")
    elif base in _ALONG:
        names = ("self", "dim", "index")
    elif base in _BY_LISTS:
        names = ("self", None, "indices")
    else:
        return None
    tensor, dim, index = names
    if tensor not in position or index not in position or (dim is not None and dim not in position):
        return None
    return _Places(position[tensor], position[dim] if dim else None, position[index], base in _BY_LISTS)
