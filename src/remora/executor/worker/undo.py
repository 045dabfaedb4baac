"""What speculated messages overwrote, so that it can be put back exactly.

One `mark` a message, before it is acted on; then `forget` when the client has confirmed it, or `back_to` when it
did something else. In between, programs run in their `guarded` form: an instruction that writes into a storage
which had a name before the program saves those bytes first, and one that draws saves the generator's state. What
a message makes is not saved: its names are dropped by whoever undoes it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from remora.executor.worker.program import Instruction, Program
from remora.executor.worker.rng import DEFAULT, Generators, Stream
from remora.executor.worker.values import Values
from remora.executor.worker.writes import Part, Write

MAX_NBYTES = 1 << 30
_aten = torch.ops.aten
# Of other dtypes, bytes are saved as integers of their size: a bool would become 0 or 1, a complex its conjugate.
_COPIED_AS_THEY_ARE = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    | {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
)
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class CannotUndo(Exception):
    """What comes next could not be undone, and nothing of it was done: it waits until it is certain."""


def log_limit_nbytes(memory_nbytes: int) -> int:
    """What the log of a session may hold on an executor that has so much memory."""
    return min(memory_nbytes // 8, MAX_NBYTES)


@dataclass
class _Layer:
    """What one message overwrote. puts: calls that put it back, in the order in which it was saved."""

    mark: int
    peak_nbytes: int
    total_nbytes: int
    nbytes: int = 0
    puts: list[tuple[Callable[..., Any], tuple[Any, ...]]] = field(default_factory=list)
    saved: set[tuple[Any, ...]] = field(default_factory=set)  # regions, which need to be saved once
    states: dict[int, torch.Tensor | None] = field(default_factory=dict)  # None: there was no such generator


class UndoLog:
    """Of one session. Its bytes count as the session's."""

    def __init__(self, values: Values, generators: Generators, session: Stream, limit_nbytes: int) -> None:
        self.limit_nbytes = limit_nbytes
        self.nbytes = 0
        self._values, self._generators, self._session = values, generators, session
        self._layers: deque[_Layer] = deque()
        self._last_mark = 0
        self._guarded: WeakKeyDictionary[Program, Program] = WeakKeyDictionary()
        # Indices of the layer's rows, saved once: many rows write at the same place.
        self._indices: dict[tuple[int, int, bool], tuple[torch.Tensor, torch.Tensor]] = {}
        self._index_storages: set[int] = set()

    @property
    def active(self) -> bool:
        """Whether anything is to be undone: programs must run guarded."""
        return bool(self._layers)

    @property
    def full(self) -> bool:
        return self.nbytes >= self.limit_nbytes

    def mark(self) -> int:
        """Remembers this state. Marks ascend."""
        self._forget_indices()
        self._last_mark += 1
        values = self._values
        self._layers.append(_Layer(self._last_mark, values.peak_nbytes, values.total_nbytes))
        return self._last_mark

    def back_to(self, mark: int) -> None:
        """Restores the state at a mark, which is gone afterwards with all later ones."""
        assert any(layer.mark == mark for layer in self._layers), f"mark {mark} is not there to go back to"
        self._forget_indices()
        while self._layers and self._layers[-1].mark >= mark:
            layer = self._layers.pop()
            for put, args in reversed(layer.puts):
                put(*args)
            for index, state in layer.states.items():
                if state is None:
                    self._session.generators.pop(index, None)
                else:
                    self._generators.restore(self._session, state, index)
            self._weigh(-layer.nbytes)
            self._values.peak_nbytes, self._values.total_nbytes = layer.peak_nbytes, layer.total_nbytes

    def forget(self, mark: int) -> None:
        """Drops what was saved since a mark until the next one, and before: it stays done."""
        while self._layers and self._layers[0].mark <= mark:
            self._weigh(-self._layers.popleft().nbytes)

    def close(self) -> None:
        """Nothing will be undone."""
        self.forget(self._last_mark)
        self._forget_indices()
        self._guarded.clear()

    def guarded(self, program: Program) -> Program:
        """The form that a program runs in while there are marks; itself, if it overwrites and draws nothing.

        Raises:
            CannotUndo: at once, or as the cause of a Failure from a row for which the log has no room left.
        """
        if not program.undoable:
            raise CannotUndo("the program has an op that may change more than its schema tells")
        if not program.writes:
            return program
        found = self._guarded.get(program)
        if found is None:
            steps = tuple(self._guard(step) if step.writes else step for step in program.instructions)
            found = self._guarded[program] = replace(program, instructions=steps)
        return found

    def save_generator(self, index: int) -> None:
        """Before a message draws from a generator, seeds it or makes it."""
        layer = self._layers[-1]
        if index in layer.states:
            return
        session, state = self._session, None
        if index == DEFAULT or index in session.generators:
            state = self._generators.state(session, index)
            self._weigh(state.nbytes, layer)
        layer.states[index] = state

    def _guard(self, step: Instruction) -> Instruction:
        call, write = step.call, step.writes
        assert write is not None

        def look_up(index: int) -> Any:
            self.save_generator(index)
            return call(index)

        def saved(*items: Any) -> Any:
            self._save(write, items)
            return call(*items)

        return replace(step, call=look_up if write.generator else saved)

    def _save(self, write: Write, items: tuple[Any, ...]) -> None:
        if write.draws:
            self.save_generator(DEFAULT)
        for place in write.places:
            item = items[place]
            for tensor in item if isinstance(item, (list, tuple)) else (item,):
                if tensor is None:
                    continue
                storage = tensor.untyped_storage()._cdata
                if storage in self._index_storages:
                    self._forget_indices()
                if not self._values.names(storage):
                    continue  # the program made it
                if place in write.outs:
                    self._save_out(tensor, storage)
                else:
                    part = write.part if place == 0 else None
                    self._save_region(tensor, storage, part, items)

    def _save_region(
        self, tensor: torch.Tensor, storage: int, part: Part | None, items: tuple[Any, ...]
    ) -> None:
        layer, shape, strides = self._layers[-1], tensor.shape, tensor.stride()
        repeats = 0 in strides
        if repeats:  # what a stride of 0 repeats is there once
            shape = tuple(size if step else 1 for size, step in zip(shape, strides, strict=True))
        region = (storage, tensor.storage_offset(), shape, strides, tensor.dtype.itemsize)
        if region in layer.saved:
            return
        memory = tensor
        if repeats or tensor.is_neg() or tensor.dtype not in _COPIED_AS_THEY_ARE:
            memory = torch.empty(
                0, dtype=_WORDS.get(tensor.dtype.itemsize, tensor.dtype), device=tensor.device
            )
            memory.set_(tensor.untyped_storage(), tensor.storage_offset(), shape, strides)
        if part is not None and not repeats and self._save_part(memory, part, items):
            return
        self._make_room(memory.nbytes)
        layer.puts.append((torch.Tensor.copy_, (memory, memory.clone())))
        layer.saved.add(region)

    def _save_out(self, tensor: torch.Tensor, storage: int) -> None:
        """A result of another size changes the tensor's own, and lies from its first byte on."""
        layer, whole = self._layers[-1], tensor.untyped_storage()
        offset = tensor.storage_offset()
        layer.puts.append((torch.Tensor.set_, (tensor, whole, offset, tuple(tensor.shape), tensor.stride())))
        first = offset * tensor.element_size()
        region = (storage, first)
        if region in layer.saved:
            return
        memory = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        memory.set_(whole, first, (whole.nbytes() - first,), (1,))
        self._make_room(memory.nbytes)
        layer.puts.append((torch.Tensor.copy_, (memory, memory.clone())))
        layer.saved.add(region)

    def _save_part(self, memory: torch.Tensor, part: Part, items: tuple[Any, ...]) -> bool:
        """False: there is no sense in it, or the row itself will raise."""
        try:
            if part.kind == "indices":
                return self._save_indices(memory, items[part.index])
            dim, index = items[part.dim], items[part.index]
            if part.kind == "along":
                return self._save_along(memory, dim, index)
            return self._save_points(memory, dim, index)
        except (IndexError, TypeError, ValueError, RuntimeError):  # the row's, which says it better
            return False

    def _save_along(self, memory: torch.Tensor, dim: int, index: torch.Tensor) -> bool:
        size = memory.shape[dim] if memory.dim() else 0
        if index.numel() >= size:
            return False
        self._make_room(memory.nbytes // size * index.numel(), count=False)
        at = self._index(index, size).reshape(-1)
        old = memory.index_select(dim, at)
        return self._add_part(torch.Tensor.index_copy_, (memory, dim, at, old), old)

    def _save_points(self, memory: torch.Tensor, dim: int, index: torch.Tensor) -> bool:
        if 2 * index.numel() >= memory.numel():
            return False
        self._make_room(index.numel() * memory.element_size(), count=False)
        at = self._index(index, memory.shape[dim])
        old = memory.gather(dim, at)
        return self._add_part(torch.Tensor.scatter_, (memory, dim, at, old), old)

    def _save_indices(self, memory: torch.Tensor, indices: list[torch.Tensor | None]) -> bool:
        given = [index for index in indices if index is not None]
        if any(index.dtype not in (torch.int64, torch.int32) for index in given):
            return False  # how many points a mask chooses, the device alone knows
        rest = [memory.shape[at] for at in range(memory.dim()) if at >= len(indices) or indices[at] is None]
        n = math.prod(torch.broadcast_shapes(*(index.shape for index in given))) * math.prod(rest)
        if 2 * n >= memory.numel():
            return False
        self._make_room(n * memory.element_size(), count=False)
        at = [
            None if index is None else self._index(index, size, from_end=True)
            for index, size in zip(indices, memory.shape, strict=False)
        ]
        old = _aten.index.Tensor(memory, at)
        return self._add_part(_aten.index_put_.default, (memory, at, old), old)

    def _add_part(self, put: Callable[..., Any], args: tuple[Any, ...], old: torch.Tensor) -> bool:
        self._weigh(old.nbytes, self._layers[-1])
        self._layers[-1].puts.append((put, args))
        return True

    def _index(self, index: torch.Tensor, size: int, from_end: bool = False) -> torch.Tensor:
        """A copy, which stays as it is now: the index may be written later. In range, as in bounds.py.

        from_end: negative ones count from the end.
        """
        key = id(index), size, from_end
        found = self._indices.get(key)
        if found is None:
            copied = index.to(torch.int64, copy=True)
            if copied.device.type == "cuda":
                copied.clamp_(-size if from_end else 0, size - 1)
            found = self._indices[key] = (index, copied)
            self._index_storages.add(index.untyped_storage()._cdata)
            self._weigh(copied.nbytes, self._layers[-1])
        return found[1]

    def _forget_indices(self) -> None:
        if self._indices:
            self._indices.clear()
            self._index_storages.clear()

    def _make_room(self, nbytes: int, count: bool = True) -> None:
        if self.nbytes + nbytes > self.limit_nbytes:
            text = f"{nbytes:,} bytes to be overwritten, {self.nbytes:,} of {self.limit_nbytes:,} are taken"
            raise CannotUndo(text)
        if count:
            self._weigh(nbytes, self._layers[-1])

    def _weigh(self, nbytes: int, layer: _Layer | None = None) -> None:
        self.nbytes += nbytes
        self._values.used_nbytes += nbytes
        if layer is not None:
            layer.nbytes += nbytes
