"""Device memory that is lent to another process of this host for as long as that copies out of it.

The device's part is small: make, write down as a handle, open, copy (`Memory`; cuda_ipc.py is the one there is).
What is lent is made for that alone, so a handle opens nothing else of this process, and is used again for a while,
as it takes long to make.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

MAX_SPARE_NBYTES = 256 << 20
DOUBT_S = 30.0  # after which a process that gave no answer does not read any more, as its front is gone
_ROOM = 8  # what is spare is at most that part of what values may still take, and they do not miss it
_FIT = 2  # a spare one is taken if it is at most so many times as large


class CannotExport(Exception):
    """The memory cannot be lent; the text says why. lasting: nor will it be later."""

    def __init__(self, message: str, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


class CannotOpen(Exception):
    """Another process's memory cannot be opened here; nothing was copied."""


@dataclass(eq=False)
class Export:
    """tensor: uint8, the memory. handle: what another process opens it with."""

    tensor: torch.Tensor
    handle: bytes
    spare_since: float = 0.0

    @property
    def nbytes(self) -> int:
        return self.tensor.numel()


class Memory(Protocol):
    """One device's memory. kind: only memory of the same kind can be opened."""

    kind: str

    def make(self, nbytes: int) -> Export:
        """Raises CannotExport."""

    def settle(self) -> None:
        """Waits until what was written is there for other processes."""

    def free(self, export: Export) -> None: ...

    def read(self, handle: bytes, targets: Sequence[tuple[int, torch.Tensor]]) -> None:
        """Copies from each offset of another process's memory into a uint8 tensor; all is there on return.

        Raises:
            CannotOpen: not here.
        """


class Exports:
    """What one worker lends, by push, and what it keeps to lend again.

    room_nbytes: what the device still has, beside what is lent.
    """

    def __init__(self, memory: Memory, limit_nbytes: int, room_nbytes: Callable[[], int]) -> None:
        self.memory = memory
        self._limit_nbytes, self._room_nbytes = limit_nbytes, room_nbytes
        self._broken = ""  # why nothing can be lent, ever
        self._lent: dict[str, Export] = {}
        self._spare: list[Export] = []
        self._doubtful: list[Export] = []  # somebody may read them still: to free them meanwhile is forbidden

    @property
    def lent_nbytes(self) -> int:
        return sum(export.nbytes for export in self._lent.values())

    @property
    def spare_nbytes(self) -> int:
        return sum(export.nbytes for export in self._spare)

    @property
    def doubtful_nbytes(self) -> int:
        return sum(export.nbytes for export in self._doubtful)

    def lend(self, push: str, nbytes: int, write: Callable[[torch.Tensor], None]) -> bytes:
        """The handle of memory into which `write` has put what the push sends. Raises CannotExport."""
        if self._broken:
            raise CannotExport(self._broken, lasting=True)
        export = self._spare_one(nbytes) or self._make(nbytes)
        try:
            write(export.tensor)
            self.memory.settle()
        except BaseException:
            self._free(export)
            raise
        self._lent[push] = export
        return export.handle

    def lent(self, push: str) -> torch.Tensor | None:
        export = self._lent.get(push)
        return None if export is None else export.tensor

    def over(self, push: str, reusable: bool) -> None:
        """Nobody copies out of it any more, or (not reusable) nobody is known to."""
        export = self._lent.pop(push, None)
        if export is None:
            return
        export.spare_since = time.monotonic()
        if not reusable:
            self._doubtful.append(export)
        elif export.nbytes + self.spare_nbytes > min(MAX_SPARE_NBYTES, self._room_nbytes() // _ROOM):
            self._free(export)
        else:
            self._spare.append(export)

    def drop_spare(self, before: float = float("inf")) -> None:
        """Frees what has been spare since `before`, and what has been in doubt for long."""
        certain = time.monotonic() - DOUBT_S
        old = [export for export in self._spare if export.spare_since < before]
        old += [export for export in self._doubtful if export.spare_since < certain]
        self._spare = [export for export in self._spare if export.spare_since >= before]
        self._doubtful = [export for export in self._doubtful if export.spare_since >= certain]
        for export in old:
            self._free(export)

    def read(self, handle: bytes, targets: Sequence[tuple[int, torch.Tensor]]) -> None:
        """As the memory's; what this process has lent itself, it does not open. Raises CannotOpen."""
        own = next((export for export in self._lent.values() if export.handle == handle), None)
        if own is None:
            self.memory.read(handle, targets)
            return
        for at, target in targets:
            target.copy_(own.tensor[at : at + target.numel()])

    def _spare_one(self, nbytes: int) -> Export | None:
        fitting = [export for export in self._spare if nbytes <= export.nbytes <= _FIT * max(nbytes, 2 << 20)]
        if not fitting:
            return None
        best = min(fitting, key=lambda export: export.nbytes)
        self._spare.remove(best)
        return best

    def _make(self, nbytes: int) -> Export:
        if nbytes > self._free_nbytes():
            self.drop_spare()
        if nbytes > self._free_nbytes():
            raise CannotExport(
                f"{nbytes:,} bytes of the device's memory were not free to send from", lasting=False
            )
        try:
            return self.memory.make(nbytes)
        except CannotExport as error:
            if error.lasting:
                self._broken = str(error) or "it failed"
            raise

    def _free_nbytes(self) -> int:
        used_nbytes = self.lent_nbytes + self.spare_nbytes + self.doubtful_nbytes
        return min(self._limit_nbytes - used_nbytes, self._room_nbytes() - self.spare_nbytes)

    def _free(self, export: Export) -> None:
        export.tensor = torch.empty(0, dtype=torch.uint8)
        self.memory.free(export)


def memory_of(device: torch.device) -> Memory | None:
    """What can be lent of a device; None for one that has no such memory."""
    if device.type == "cuda" and sys.platform == "linux" and torch.version.cuda:
        from remora.executor.worker.cuda_ipc import CudaMemory

        return CudaMemory(device)
    return None
