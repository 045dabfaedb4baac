"""A program's graphs, and the guards under which each may be replayed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch

from remora.executor.worker.append import grown, kind_of_cache
from remora.executor.worker.pieces import Stage
from remora.executor.worker.program import Failure, Registers
from remora.executor.worker.tables import Table
from remora.executor.worker.watching import Appending, Meta, same_meta


@dataclass(eq=False, slots=True)
class Pin:
    """An input that a graph reads where it is. seen: the tensor that was last found right."""

    register: int
    address: int
    meta: Meta
    seen: weakref.ref[torch.Tensor]

    def holds(self, tensor: Any) -> bool:
        if self.seen() is tensor:
            return True
        if not (
            isinstance(tensor, torch.Tensor)
            and tensor.data_ptr() == self.address
            and same_meta(tensor, self.meta)
        ):
            return False
        self.seen = weakref.ref(tensor)
        return True


@dataclass(eq=False, slots=True)
class Piece:
    """A recorded stage. copies: (register, metadata, buffer) of the inputs that are copied to where it reads them;
    `own`: those that no earlier piece of the plan copies. grown: registers of caches that it makes longer. drops:
    registers that nothing reads afterwards, beside what it made. unchecked: runs whose results are still to be
    compared."""

    row: int
    replay: Callable[[], None]
    pins: tuple[Pin, ...]
    copies: tuple[tuple[int, Meta, torch.Tensor], ...]
    own: tuple[tuple[int, Meta, torch.Tensor], ...]
    gives: tuple[tuple[int, torch.Tensor], ...]
    grown: tuple[int, ...] = ()
    drops: tuple[int, ...] = ()
    unchecked: int = 0

    def ready(self, registers: Registers) -> bool:
        """Whether the inputs are as they were when this was recorded."""
        for pin in self.pins:
            tensor = registers[pin.register]
            if pin.seen() is not tensor and not pin.holds(tensor):
                return False
        return all(same_meta(registers[register], meta) for register, meta, _ in self.copies)

    def run(self, registers: Registers, alone: bool) -> None:
        """alone: earlier pieces of this run have copied nothing for this one. Raises Failure."""
        copies = self.copies if alone else self.own
        try:
            if len(copies) == 1:
                ((register, _, buffer),) = copies
                buffer.copy_(registers[register])
            elif copies:
                torch._foreach_copy_(
                    [buffer for _, _, buffer in copies], [registers[r] for r, _, _ in copies]
                )
            self.replay()
        except Exception as error:
            raise Failure(self.row, error, registers) from error
        for register, tensor in self.gives:
            registers[register] = tensor


class Cache:
    """A cache that a graph of a program makes longer by as many rows each time."""

    def __init__(self, one: Appending, new: Meta, dim: int) -> None:
        self.past, self.grown, self._reserve = one.past, one.grown, one.grow.reserve
        self._dtype, self.shape, _ = new
        self.dim, self.rows = dim, self.shape[dim]
        self._kind = kind_of_cache(self._dtype, self.shape, dim)

    def fits(self, past: Any) -> bool:
        """Whether a tensor is one that such rows may be appended to."""
        known = grown(past)
        if known is not None and known.buffer is not None:
            return known.buffer.kind == self._kind
        if kind_of_cache(past.dtype, past.shape, self.dim) != self._kind:
            return False
        return past.numel() > 0  # else nothing tells how large a row of its memory is

    def alone(self, device: torch.device) -> torch.Tensor:
        """Memory for what is appended at once."""
        return torch.zeros(self.shape, dtype=self._dtype, device=device)

    def reserve(self, registers: Registers) -> tuple[int, ...] | None:
        """Makes it longer; the graph will write those rows where the numbers, of a table, say. None: it cannot."""
        past = registers[self.past]
        made = self._reserve(past, self.dim, self.rows) if self.fits(past) else None
        if made is None:
            return None
        registers[self.grown], buffer = made
        return buffer.address, buffer.capacity, past.shape[self.dim], 0


class Holes:
    """The numbers that graphs were recorded with."""

    def __init__(self, fixed: tuple[tuple[int, Meta], ...], n_slots: int) -> None:
        places = [register - n_slots for register, _ in fixed]
        self._values = [meta[1] for _, meta in fixed]
        self._pick = (
            itemgetter(*places) if len(places) > 1 else lambda holes: tuple(holes[at] for at in places)
        )
        self._picked = tuple(self._values)
        self._signs = [
            (place, math.copysign(1, value))
            for place, value in zip(places, self._values, strict=True)
            if isinstance(value, float) and value == 0
        ]

    def hold(self, holes: Sequence[int | float]) -> bool:
        every = len(holes) == len(self._values)
        same = holes == self._values if every else self._pick(holes) == self._picked
        return same and all(math.copysign(1, holes[place]) == sign for place, sign in self._signs)


@dataclass(eq=False)
class Plan:
    """stages, with the piece of each as far as it is recorded. holes: the numbers that pieces were recorded with.
    caches: those that pieces make longer, one piece's after another's; table: where graphs find them; told: what it
    says in this run. buffers: register: its copy, which the pieces of one run share. outputs: identity of each
    storage that graphs write and rows outside of them may see, with all of its bytes."""

    stages: tuple[Stage, ...]
    holes: Holes
    pieces: list[Piece | None]
    pool: Any
    caches: tuple[Cache, ...] = ()
    table: Table | None = None
    buffers: dict[int, torch.Tensor] = field(default_factory=dict)
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    told: list[int] = field(default_factory=list)
    nbytes: int = 0
    runs: int = 0

    def reserve(self, registers: Registers) -> bool:
        """Makes room for what graphs will append. False: it cannot, and nothing happened."""
        if self.table is None:
            return True
        numbers: list[int] = []
        for cache in self.caches:
            row = cache.reserve(registers)
            if row is None:
                for other in self.caches:
                    registers[other.grown] = None
                return False
            numbers += row
        self.table.tell(numbers)
        self.told = numbers
        return True

    def try_out(self, body: Callable[[], Any]) -> None:
        """Runs a piece once outside of a graph, where kernels are loaded. What it appends goes to nobody's caches."""
        if self.table is None:
            body()
            return
        scratch = [cache.alone(self.table.on_device.device) for cache in self.caches]
        numbers = [
            (memory.data_ptr(), cache.rows, 0, 0) for memory, cache in zip(scratch, self.caches, strict=True)
        ]
        self.table.tell([number for row in numbers for number in row])
        body()
        self.table.tell(self.told)
