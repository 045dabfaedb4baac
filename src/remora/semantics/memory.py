"""What annotation remembers of a session's earlier graphs. Immutable: annotating gives the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from remora.ir.annotated import Phase, Residency
from remora.ir.node import Node

Maker = tuple[Node, int]
_NONE: Mapping[int, Residency] = MappingProxyType({})
_NO_MAKERS: Mapping[Maker, Residency] = MappingProxyType({})
_NO_PHASES: Mapping[Maker, Phase] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Memory:
    """What was learned of values that more than one graph sees.

    storages: what lives in a memory that stays (`Outside.storage`): weights, fixed caches, optimizer state.
    candidates: rows (node, output) that look like a cache's and whose readers were not in their graph.
    made: rows whose output a later graph found to be a cache or an optimizer's state. Where a program is cut between
    the row that makes it and those that use it, the row's own graph cannot tell.
    phases: rows whose output a later graph went on with, towards a cache, and its phase: the first rows of a step may
    be cut from its first attention.
    phase: of the last graph that had a cache.
    """

    storages: Mapping[int, Residency] = field(default_factory=lambda: _NONE)
    candidates: frozenset[Maker] = frozenset()
    made: Mapping[Maker, Residency] = field(default_factory=lambda: _NO_MAKERS)
    phases: Mapping[Maker, Phase] = field(default_factory=lambda: _NO_PHASES)
    phase: Phase | None = None


EMPTY = Memory()
