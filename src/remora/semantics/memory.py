"""What annotation remembers of a session's earlier graphs. Immutable: annotating gives the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from remora.ir.annotated import Graph, Outside, Phase, Residency
from remora.ir.node import Node

Maker = tuple[str, Node, int]  # a graph's template, a row of it, an output
_NONE: Mapping[int, Residency] = MappingProxyType({})
_NO_MAKERS: Mapping[Maker, Residency] = MappingProxyType({})
_NO_JOINS: Mapping[Maker, Maker] = MappingProxyType({})
_NO_PHASES: Mapping[Maker, Phase] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Memory:
    """What was learned of values that more than one graph sees.

    storages: what lives in a memory that stays (`Outside.storage`): weights, fixed caches, optimizer state.
    candidates: rows that may be a cache's and whose readers were not in their graph, and the row that joins it: where
    heads are repeated for attention, a later graph sees but a copy of the cache.
    made: rows whose output a later graph found to be a cache or an optimizer's state. Where a program is cut between
    the row that makes it and those that use it, the row's own graph cannot tell.
    phases: rows whose output a later graph went on with, towards a cache, and its phase: the first rows of a step may
    be cut from its first attention.
    phase: of the last graph that had a cache.
    """

    storages: Mapping[int, Residency] = field(default_factory=lambda: _NONE)
    candidates: Mapping[Maker, Maker] = field(default_factory=lambda: _NO_JOINS)
    made: Mapping[Maker, Residency] = field(default_factory=lambda: _NO_MAKERS)
    phases: Mapping[Maker, Phase] = field(default_factory=lambda: _NO_PHASES)
    phase: Phase | None = None


EMPTY = Memory()


def maker_of(slot: Outside) -> Maker | None:
    """Who made a slot's value."""
    return (slot.made_in, *slot.made_by) if slot.made_by is not None else None


def maker(graph: Graph, row: int, out: int = 0) -> Maker:
    """As `maker_of` of later graphs that read this row."""
    return graph.template, graph.rows[row].node, out
