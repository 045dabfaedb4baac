"""A graph that computes what a captured one does, in other rows, and how a run of the captured one becomes its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from remora.ir.annotated import Graph, Row
from remora.ir.node import Hole

Output = tuple[int, int]
"""Row and output of a graph."""


@dataclass(frozen=True)
class Rewrite:
    """What passes make of a captured graph.

    graph: with the executor that each row is wished on. rows: for each of its rows, the captured one in whose place it
    stands. holes: for each of its holes, the captured one whose number it takes in every run; None: it keeps the number
    that it has in `graph`, and the rewrite holds for the captured graph's sizes and whole numbers alone. outputs: where
    what lives on, or is wanted, is made. cuts: rows behind which their executor's part ends.
    """

    graph: Graph
    rows: tuple[int, ...]
    holes: tuple[int | None, ...]
    outputs: Mapping[Output, Output] = field(default_factory=dict)
    cuts: frozenset[int] = frozenset()

    @property
    def exact(self) -> bool:
        """Whether it holds for the sizes and whole numbers of the captured graph alone."""
        return None in self.holes


def unchanged(graph: Graph) -> Rewrite:
    """The graph itself."""
    outputs = {output: output for output in graph.keep | graph.wants}
    return Rewrite(graph, tuple(range(len(graph.rows))), tuple(range(len(graph.holes))), outputs)


def n_holes(row: Row) -> int:
    return sum(isinstance(arg, Hole) for arg in row.node.inputs())


def first_holes(graph: Graph) -> list[int]:
    """Position of each row's first hole, and behind the last row their number."""
    first = [0]
    for row in graph.rows:
        first.append(first[-1] + n_holes(row))
    return first
