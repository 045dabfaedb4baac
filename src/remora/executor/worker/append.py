"""`torch.cat` of a tensor that grows, without copying what is there: a KV cache, step after step.

The result is a view into a buffer that has room behind it; the next `cat` of it writes only what is new. Nobody
can tell: `readers.py` says which rows may read such a view, and for all others it is copied out first
(`exact`), so nothing ever writes into a buffer but this file. The rule that keeps living tensors as they are:

- `Buffer.mark` is the end of what living tensors can see. Rows are written behind it, nowhere else.
- A tensor that ends at the mark is appended to. One that ends before it, while something that lives sees more,
  forks: it is copied to a buffer of its own.
- The mark goes back when nothing that sees more lives (what ran ahead and was undone, for one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any
from weakref import WeakSet

import torch

from remora.executor.worker.readers import CAT
from remora.ir.node import Node

# rows: positions along the dimension that grows

LEAST_NBYTES = 128 << 10  # a smaller tensor is copied in the time that an append takes
BLOCK_ROWS = 64  # room to spare in a new buffer, at most: a copy of the whole once in so many steps
_STEP_ROWS = 8  # buffers end at a multiple of that, as attention kernels like it
_ROOM = 64  # spare room is at most that part of what values may still take
_GROWTH = 4  # a tensor grows if what is added is at most that part of it
_COPIES = 4  # a row stops appending when more than that part of its results had to be copied out after all
_FIRST = 16  # results by which that is judged, at least

Kernel = Callable[..., Any]
_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


class Buffer:
    """Memory for `capacity` rows along `dim`. Raises RuntimeError if there is none."""

    def __init__(self, like: torch.Tensor, shape: Sequence[int], dim: int, capacity: int) -> None:
        self.memory = like.new_empty((*shape[:dim], capacity, *shape[dim + 1 :]))
        self.address = self.memory.data_ptr()
        self.kind = kind_of_cache(like.dtype, shape, dim)
        self.dim, self.capacity, self.mark = dim, capacity, 0
        self.grown: WeakSet[Grown] = WeakSet()

    def rows(self, first: int, end: int) -> torch.Tensor:
        return self.memory.narrow(self.dim, first, end - first)

    def ends_at(self, rows: int) -> bool:
        """Whether the mark is there, or can go back there because nothing that lives sees more."""
        if self.mark == rows:
            return True
        living = list(self.grown)
        if _use_count is None or any(other.length > rows for other in living):
            return False
        # beside the views known here: `memory`, and the storage's own Python object
        if _use_count(self.memory.untyped_storage()._cdata) != len(living) + 2:
            return False
        self.mark = rows
        return True


def kind_of_cache(dtype: torch.dtype, shape: Sequence[int], dim: int) -> tuple[Any, ...]:
    """What tensors have in common that one row may make longer along `dim`."""
    return dtype, dim, tuple(shape[:dim]), tuple(shape[dim + 1 :])


class Grown:
    """What a tensor carries that a growing row made. length: its rows; rows: those that came last; buffer: None
    for one that lies in memory of its own."""

    __slots__ = ("__weakref__", "buffer", "dim", "length", "row", "rows")

    def __init__(self, row: _Row, dim: int, length: int, rows: int, buffer: Buffer | None) -> None:
        self.row, self.dim, self.length, self.rows, self.buffer = row, dim, length, rows, buffer


def grown(tensor: torch.Tensor) -> Grown | None:
    return getattr(tensor, "_remora_grown", None)


def in_buffer(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a view that only some may read."""
    known = grown(tensor)
    return known is not None and known.buffer is not None


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """What the program believes a view to be: contiguous, in memory of its own."""
    return tensor.clone(memory_format=torch.contiguous_format)


def copied_out(tensor: torch.Tensor) -> torch.Tensor:
    """`exact` for good; a row whose results often end that way stops appending."""
    known = grown(tensor)
    assert known is not None
    known.row.copied_out += 1
    return exact(tensor)


def spares(tensor: torch.Tensor) -> bool:
    """Whether an `exact` tensor in place of this view would take less memory."""
    known = grown(tensor)
    if known is None or known.buffer is None:
        return False
    return known.length < known.buffer.capacity and len(known.buffer.grown) == 1


def growing_kernel(node: Node, plain: Kernel, room_nbytes: Callable[[], int]) -> Kernel:
    """What a row calls that `readers.py` allows to grow a tensor in place; `plain` is PyTorch's own."""
    return (Cat if node.op == CAT else _Select)(plain, room_nbytes)


class _Row:
    """One row of a program, which may serve many caches: the layers of a model share it."""

    def __init__(self, plain: Kernel, room_nbytes: Callable[[], int]) -> None:
        self.plain, self.room_nbytes = plain, room_nbytes
        self.appended = self.copied_out = 0

    @property
    def pays(self) -> bool:
        return self.copied_out * _COPIES <= self.appended + _FIRST

    def contiguous(self, *items: Any) -> torch.Tensor:
        made: torch.Tensor = self.plain(*items)
        return made.contiguous()

    def buffer(
        self, like: torch.Tensor, shape: Sequence[int], dim: int, length: int, spare: int
    ) -> Buffer | None:
        """For so many rows, and some to spare; None: there is no room, and it goes as it would without."""
        row_nbytes = prod(shape) // shape[dim] * like.element_size()
        if row_nbytes * spare * _ROOM > self.room_nbytes():
            return None
        try:
            return Buffer(like, shape, dim, length + spare)
        except RuntimeError:  # PyTorch's own op, which comes next, says it better, or does with less
            return None

    def view(self, buffer: Buffer, length: int, rows: int) -> torch.Tensor:
        """The first rows of a buffer, now seen by a living tensor."""
        self.appended += 1
        buffer.mark = length
        known = Grown(self, buffer.dim, length, rows, buffer)
        buffer.grown.add(known)
        return _carrying(buffer.rows(0, length), known)


class Cat(_Row):
    def __call__(self, tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        at, rows = self._growth(tensors, dim)
        if not rows or not self.pays:
            return self.contiguous(tensors, dim)
        old = tensors[0]
        known, length = grown(old), old.shape[at]
        if known is None or known.dim != at:  # it may grow once only
            return _carrying(self.contiguous(tensors, dim), Grown(self, at, length + rows, rows, None))
        buffer = self._with_room(old, at, length, rows)
        if buffer is None:
            return _carrying(self.contiguous(tensors, dim), Grown(self, at, length + rows, rows, None))
        end = length
        for new in tensors[1:]:
            buffer.rows(end, end + new.shape[at]).copy_(new)
            end += new.shape[at]
        return self.view(buffer, end, rows)

    def reserve(self, old: torch.Tensor, at: int, rows: int) -> tuple[torch.Tensor, Buffer] | None:
        """A view that is so many rows longer than `old` along `at`, and where it lies; those rows are the caller's to
        write, in the order of the stream. None: there is no room, or it does not pay."""
        length = old.shape[at]
        buffer = self._with_room(old, at, length, rows) if self.pays else None
        return None if buffer is None else (self.view(buffer, length + rows, rows), buffer)

    def _with_room(self, old: torch.Tensor, at: int, length: int, rows: int) -> Buffer | None:
        """A buffer that begins with `old`, and may be written behind it."""
        known = grown(old)
        buffer = known.buffer if known is not None and known.dim == at else None
        if buffer is None or length + rows > buffer.capacity or not buffer.ends_at(length):
            buffer = self.buffer(old, old.shape, at, length + rows, _spare(length + rows))
            if buffer is not None:
                buffer.rows(0, length).copy_(old)
        return buffer

    def _growth(self, tensors: Sequence[torch.Tensor], dim: int) -> tuple[int, int]:
        """The dimension, counted from 0, and by how many rows the first tensor grows there; 0: it does not."""
        if len(tensors) < 2:
            return dim, 0
        old = tensors[0]
        n, shape = old.dim(), old.shape
        at = dim + n if dim < 0 else dim
        # along the last dimension, or beside one of size 1, attention may choose its way by the strides
        if not 0 <= at < n - 1 or shape[-1] < 2 or old.nbytes < LEAST_NBYTES:
            return at, 0
        rows = 0
        for new in tensors[1:]:
            other = new.shape
            if new.dtype is not old.dtype or len(other) != n or other[:at] != shape[:at]:
                return at, 0
            if other[at + 1 :] != shape[at + 1 :]:
                return at, 0
            rows += other[at]
        if rows * _GROWTH > shape[at] or old.is_conj() or old.is_neg():
            return at, 0
        return at, rows


class _Select(_Row):
    """Beams are reordered between two growths: the rows that come next have their place in the copy."""

    def __call__(self, tensor: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
        known = grown(tensor)
        if known is None or not self.pays or index.dim() != 1:
            return self.contiguous(tensor, dim, index)
        at = dim + tensor.dim() if dim < 0 else dim
        if not 0 <= at < tensor.dim() or at == known.dim or not index.numel():
            return self.contiguous(tensor, dim, index)
        shape = list(tensor.shape)
        shape[at] = index.numel()
        buffer = self.buffer(tensor, shape, known.dim, known.length, known.rows)
        if buffer is None:
            return self.contiguous(tensor, dim, index)
        torch.index_select(tensor, at, index, out=buffer.rows(0, known.length))
        return self.view(buffer, known.length, known.rows)


def _carrying(tensor: torch.Tensor, known: Grown) -> torch.Tensor:
    tensor._remora_grown = known  # type: ignore[attr-defined]
    return tensor


def _spare(length: int) -> int:
    """Rows to spare behind a tensor that has grown to `length` and will go on."""
    spare = min(BLOCK_ROWS, max(_STEP_ROWS, length // 4))
    return spare + -(length + spare) % _STEP_ROWS
