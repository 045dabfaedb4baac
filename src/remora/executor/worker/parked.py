"""Values that had to leave memory that something else overwrites: kept as bytes until somebody wants to read them.

A graph's results move out before its next run if they still have a name. Nearly all of them are freed unread (the
program has only not said so yet), so what is done for each is little: one copy of all, and no tensor for any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from remora.wire.binding import Name

ALIGNMENT = 512  # as the allocator aligns
FEW = 4  # storages that get memory of their own, so that none keeps others'
# With more, the oldest values are made tensors in memory of their own, which costs many times what leaving them does:
# so what is only freed late must fit.
MAX_BATCHES = 4096
MAX_NBYTES = 64 << 20  # in them


@dataclass(eq=False, slots=True)
class Place:
    """Where a value lies in a batch. like: a tensor at the same place of the storage that was left."""

    batch: Batch
    chunk: torch.Tensor
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    def tensor(self, chunk: torch.Tensor) -> torch.Tensor:
        made = torch.empty(0, dtype=self.dtype, device=chunk.device)
        offset = chunk.storage_offset() // self.dtype.itemsize + self.offset
        return made.set_(chunk.untyped_storage(), offset, self.shape, self.stride)


@dataclass(eq=False, slots=True)
class Batch:
    """Storages that were copied together. names: what still lies in them."""

    nbytes: int
    names: dict[Name, None] = field(default_factory=dict)


class Parked:
    """Of one session. nbytes: what it takes of the device's memory."""

    def __init__(self) -> None:
        self.places: dict[Name, Place] = {}
        self.nbytes = 0
        self._batches: dict[Batch, None] = {}

    def park(self, storages: list[torch.Tensor], tensors: list[dict[Name, torch.Tensor]]) -> None:
        """Copies storages, each given as its bytes, with the values that lie in each. Raises OutOfMemoryError."""
        chunks = _chunks([storage.nbytes for storage in storages], storages[0].device)
        if len(chunks) == 1:
            chunks[0].copy_(storages[0])
        else:
            torch._foreach_copy_(chunks, storages)
        batch = Batch(sum(storage.nbytes + -storage.nbytes % ALIGNMENT for storage in storages))
        for chunk, found in zip(chunks, tensors, strict=True):
            for name, t in found.items():
                self.places[name] = Place(batch, chunk, t.dtype, t.storage_offset(), t.shape, t.stride())
                batch.names[name] = None
        self._batches[batch] = None
        self.nbytes += batch.nbytes

    def free(self, name: Name) -> None:
        place = self.places.pop(name, None)
        if place is not None:
            del place.batch.names[name]
            if not place.batch.names:
                self._drop(place.batch)

    def take(self, name: Name, keep: Callable[[Name, torch.Tensor], None]) -> None:
        """Makes tensors of all values that were copied together with this one, and keeps them."""
        batch = self.places[name].batch
        for other in batch.names:
            place = self.places.pop(other)
            keep(other, place.tensor(place.chunk))
        self._drop(batch)

    def trim(self, keep: Callable[[Name, torch.Tensor], None]) -> None:
        """Before memory is kept for the few that stay: each gets its own. Raises OutOfMemoryError."""
        while len(self._batches) > MAX_BATCHES or (self.nbytes > MAX_NBYTES and len(self._batches) > 1):
            batch = next(iter(self._batches))
            own = {id(self.places[name].chunk): self.places[name].chunk.clone() for name in batch.names}
            for name in batch.names:
                place = self.places.pop(name)
                keep(name, place.tensor(own[id(place.chunk)]))
            self._drop(batch)

    def clear(self) -> None:
        self.places.clear()
        self._batches.clear()
        self.nbytes = 0

    def _drop(self, batch: Batch) -> None:
        del self._batches[batch]
        self.nbytes -= batch.nbytes


def _chunks(sizes: list[int], device: torch.device) -> list[torch.Tensor]:
    """Memory for each size: of its own if they are few, else one allocation."""
    if len(sizes) <= FEW:
        return [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]
    parts = [part for size in sizes for part in (size, -size % ALIGNMENT)]
    return list(torch.empty(sum(parts), dtype=torch.uint8, device=device).split_with_sizes(parts)[::2])
