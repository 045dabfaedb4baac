"""The programs of a session on a device that has graphs: each has a `Tier` (tier.py), all share the memory for them."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch

from remora.executor.worker.graphs import Recorder
from remora.executor.worker.loose import Kernels
from remora.executor.worker.program import Program
from remora.executor.worker.tier import Tier, all_bytes
from remora.executor.worker.values import Values
from remora.ir.graph import Template
from remora.wire.binding import Name

MAX_TIERS = 2048  # of a session
MAX_IN_TURN = 16  # layers that one site serves
ROOM_SHARE = 4  # graphs take at most that part of what values may still take
PROGRAM_NBYTES = 8 << 20  # room for a program's graphs, before it is known


class Tiers:
    """Of one session. nbytes: what graphs hold of the device's memory. room_nbytes: what values may still take.
    clear_all: drops the graphs of all sessions; whether there were any. kernels: those that PyTorch has not; if
    `exact`, only such as change no bit are used."""

    def __init__(
        self,
        values: Values,
        recorder: Recorder,
        room_nbytes: Callable[[], int],
        clear_all: Callable[[], bool],
        device: torch.device,
        kernels: Kernels | None = None,
        exact: bool = True,
    ) -> None:
        self.values, self.recorder = values, recorder
        self.room_nbytes, self.clear_all = room_nbytes, clear_all
        self.device, self.kernels, self.exact = device, kernels, exact
        self.nbytes = 0
        self.refused = 0  # programs in which those were too far from PyTorch's own
        self.inexact_runs = 0  # of programs, with them
        self._tiers: dict[tuple[int, tuple[int, ...]], list[Tier]] = {}
        self._n_tiers = 0

    def find(
        self, site: int, keep: tuple[int, ...], names: list[Name], template: Template, program: Program
    ) -> Tier:
        """names: the values that the slots are now. A site may serve several layers in turn: each gets a tier."""
        tiers = self._tiers.setdefault((site, keep), [])
        for tier in tiers:
            if tier.alone or _alike(tier.names, names):
                tier.names = names
                return tier
        if len(tiers) >= MAX_IN_TURN:  # then names say nothing
            for tier in tiers[1:]:
                tier.drop()
            del tiers[1:]
            tiers[0].alone, tiers[0].names = True, names
            return tiers[0]
        if self._n_tiers >= MAX_TIERS:
            self.forget()
            tiers = self._tiers.setdefault((site, keep), [])
        self._n_tiers += 1
        tiers.append(Tier(self, template, program, names))
        return tiers[-1]

    def all(self) -> list[Tier]:
        return [tier for tiers in self._tiers.values() for tier in tiers]

    def clear(self) -> bool:
        """Drops all graphs, to be recorded anew; whether there were any."""
        found = any(tier.plan is not None for tier in self.all())
        for tier in self.all():
            tier.drop()
        if found:
            self.recorder.give_back()
        return found

    def forget(self) -> None:
        """Drops all graphs and what was seen of programs."""
        self.clear()
        self._tiers.clear()
        self._n_tiers = 0

    def has_room(self) -> bool:
        return self.nbytes + PROGRAM_NBYTES <= max(0, self.room_nbytes()) // ROOM_SHARE

    def own(self, names: list[Name]) -> None:
        """Before something writes to values: moves those out of graphs' memory that lie there."""
        lent, tensors = self.values.lent, self.values.tensors
        found = {tensors[n].untyped_storage()._cdata: tensors[n] for n in names if n in tensors}
        found = {storage: tensor for storage, tensor in found.items() if storage in lent}
        if found:
            self.move([all_bytes(tensor) for tensor in found.values()])

    def move(self, storages: list[torch.Tensor]) -> None:
        """Copies storages, each given as its bytes, to memory that nothing overwrites, with all names in them."""
        try:
            self.values.park(storages)
        except torch.OutOfMemoryError:
            self.clear_all()  # then nothing will overwrite them


def _alike(names: list[Name], others: list[Name]) -> bool:
    """Whether two bindings are of the same layer: the weights are the same, what flows is not."""
    return sum(map(operator.eq, names, others)) * 4 >= len(names)
