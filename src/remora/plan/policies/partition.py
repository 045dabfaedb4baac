"""A graph cut by layers: which executor gets what no executor has yet, so that everybody's memory holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from remora.ir.annotated import Graph
from remora.ir.node import Ref, Slot
from remora.plan.policies.policy import ROOM
from remora.plan.situation import Situation


@dataclass(frozen=True, slots=True)
class _Unit:
    """Rows that stay together, such as a layer's. storages: of slots on no executor that its rows are the first to
    read. nbytes: of those, and of what its rows make that lives on."""

    storages: tuple[int, ...]
    nbytes: int


def partition(graph: Graph, situation: Situation) -> Mapping[int, int]:
    """The executor of each storage (`Outside.storage`) that is on none yet, in the order of layers.

    One executor after the other is filled, up to the share that leaves room for what is computed, or, if that does not
    do, to the brim; what does not fit anywhere goes to the last one.
    """
    units = _units(graph, situation)
    for share in (ROOM, 1.0):
        rooms = situation.rooms_nbytes(share)
        chosen, fits = _filled(units, rooms)
        if fits:
            break
    return {storage: at for unit, at in zip(units, chosen, strict=True) for storage in unit.storages}


def _filled(units: Sequence[_Unit], rooms: Sequence[int]) -> tuple[list[int], bool]:
    """The executor of each unit, ascending; whether all of them fit."""
    chosen: list[int] = []
    at, filled, fits = 0, 0, True
    for unit in units:
        while at < len(rooms) - 1 and filled + unit.nbytes > rooms[at]:
            at, filled = at + 1, 0
        filled += unit.nbytes
        fits = fits and filled <= rooms[at]
        chosen.append(at)
    return chosen, fits


def _units(graph: Graph, situation: Situation) -> list[_Unit]:
    nowhere = {
        slot.storage: 0 for slot, owner in zip(graph.slots, situation.owners, strict=True) if owner is None
    }
    for slot in graph.slots:
        if slot.storage in nowhere:
            nowhere[slot.storage] = max(nowhere[slot.storage], slot.facts.nbytes)
    kept: dict[int, int] = {}
    for number, out in graph.keep:
        facts = graph.rows[number].outs[out]
        if facts is not None and graph.storage(Ref(number, out)) == ("row", number, out):
            kept[number] = kept.get(number, 0) + facts.nbytes
    last = max((at for at, row in enumerate(graph.rows) if row.meaning.layer is not None), default=-1)
    units: list[_Unit] = []
    seen: set[int] = set()
    storages: list[int] = []
    nbytes, layer = 0, None
    for number, row in enumerate(graph.rows):
        here = row.meaning.layer
        if (here is not None and here != layer) or number > last:
            units.append(_Unit(tuple(storages), nbytes))
            storages, nbytes = [], 0
        layer = here if here is not None else layer
        read = [graph.slots[arg.index].storage for arg in row.tensors() if isinstance(arg, Slot)]
        for storage in dict.fromkeys(read):
            if storage in nowhere and storage not in seen:
                seen.add(storage)
                storages.append(storage)
                nbytes += nowhere[storage]
        nbytes += kept.get(number, 0)
    return [*units, _Unit(tuple(storages), nbytes)]
