"""A program's graphs, and the guards under which each may be replayed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from remora.executor.worker.append import grown
from remora.executor.worker.pieces import Stage
from remora.executor.worker.program import Failure, Registers
from remora.executor.worker.tables import Table
from remora.executor.worker.watching import Attending, Meta, same_meta


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
    `own`: those that no earlier piece of the plan copies. attending: what appends to caches and attends to them, with
    the kind of each; table: where it finds them. unchecked: runs whose results are still to be compared."""

    row: int
    replay: Callable[[], None]
    pins: tuple[Pin, ...]
    copies: tuple[tuple[int, Meta, torch.Tensor], ...]
    own: tuple[tuple[int, Meta, torch.Tensor], ...]
    gives: tuple[tuple[int, torch.Tensor], ...]
    attending: tuple[tuple[Attending, Meta], ...] = ()
    table: Table | None = None
    unchecked: int = 0

    def ready(self, registers: Registers) -> bool:
        """Whether the inputs are as they were when this was recorded."""
        for pin in self.pins:
            tensor = registers[pin.register]
            if pin.seen() is not tensor and not pin.holds(tensor):
                return False
        return all(same_meta(registers[register], meta) for register, meta, _ in self.copies)

    def reserve(self, registers: Registers) -> bool:
        """Makes the caches one row longer, which the graph will write. False: there is no room; nothing happened."""
        if self.table is None:
            return True
        numbers: list[int] = []
        for one, kind in self.attending:
            made = [
                grow.reserve(registers[past], 2) if _is_cache(registers[past], kind) else None
                for grow, past in ((one.grow_keys, one.past_keys), (one.grow_values, one.past_values))
            ]
            registers[one.keys], registers[one.values] = made
            if made[0] is None or made[1] is None:
                for earlier, _ in self.attending:
                    registers[earlier.keys] = registers[earlier.values] = None
                return False
            numbers += _row(*made)
        self.table.tell(numbers)
        return True

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


def _is_cache(past: Any, new: Meta) -> bool:
    """Whether a tensor is one that such rows may be appended to. new: of what is appended."""
    if not isinstance(past, torch.Tensor) or past.dim() != 4 or past.dtype is not new[0]:
        return False
    b, h, _, d = new[1]
    return past.shape == (b, h, past.shape[2], d)


def _row(keys: torch.Tensor, values: torch.Tensor) -> list[int]:
    """Of a table, as loose.py reads it."""
    buffers = [known.buffer for known in (grown(keys), grown(values)) if known is not None]
    first, second = (buffer for buffer in buffers if buffer is not None)
    addresses = [first.memory.data_ptr(), second.memory.data_ptr()]
    return [*addresses, first.capacity, second.capacity, keys.shape[2] - 1]


class Holes:
    """The numbers that graphs were recorded with."""

    def __init__(self, fixed: tuple[tuple[int, Meta], ...], n_slots: int) -> None:
        self._places = [register - n_slots for register, _ in fixed]
        self._values = [meta[1] for _, meta in fixed]
        self._signs = [
            (place, math.copysign(1, value))
            for place, value in zip(self._places, self._values, strict=True)
            if isinstance(value, float) and value == 0
        ]

    def hold(self, holes: Sequence[int | float]) -> bool:
        if len(holes) == len(self._values):
            same = holes == self._values
        else:
            same = [holes[place] for place in self._places] == self._values
        return same and all(math.copysign(1, holes[place]) == sign for place, sign in self._signs)


@dataclass(eq=False)
class Plan:
    """stages, with the piece of each as far as it is recorded. holes: the numbers that pieces were recorded with.
    buffers: register: its copy, which the pieces of one run share. outputs: identity of each storage that graphs
    write and rows outside of them may see, with all of its bytes."""

    stages: tuple[Stage, ...]
    holes: Holes
    pieces: list[Piece | None]
    pool: Any
    buffers: dict[int, torch.Tensor] = field(default_factory=dict)
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    nbytes: int = 0
    runs: int = 0
