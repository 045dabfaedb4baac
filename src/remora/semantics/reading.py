"""A graph as recognisers read it: wiring, memory and numbers looked up once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from remora.ir.annotated import Facts, Graph
from remora.ir.node import Hole, Ref, Slot
from remora.semantics.memory import Memory

Arg = Ref | Slot
Root = tuple[str, int, int]

# Ops that move data and compute nothing, beside views. What is called `to` may change the dtype.
_CARRIES = frozenset(
    {"reshape", "clone", "contiguous", "to", "_to_copy", "repeat_interleave", "repeat", "expand", "flatten"}
    | {"index_select", "index", "roll", "lift_fresh", "view_copy", "flip", "gather", "_unsafe_view", "copy"}
)
_FLOATS = ("float", "bfloat", "complex")


class Reading:
    """Look-ups over one graph. `rows` below are numbers of rows.

    inputs: of each row, its tensors. ops: of each row, the op's own name: `cat` for aten.cat.default.
    roots: of each row's outputs, whose memory they lie in.
    sources: of each row, the rows whose results it reads: those that made its inputs and those that wrote them last.
    writers: the rows that write a memory, in order.
    """

    def __init__(self, graph: Graph, memory: Memory) -> None:
        self.graph, self.memory = graph, memory
        self.inputs = [row.tensors() for row in graph.rows]
        self.ops = [row.node.op.split(".")[1] for row in graph.rows]
        self.roots: list[tuple[Root, ...]] = []
        self.sources: list[tuple[int, ...]] = []
        self.writers: dict[Root, list[int]] = {}
        last: dict[Root, int] = {}
        for number, row in enumerate(graph.rows):
            inputs = self.inputs[number]
            found = []
            for arg in inputs:
                if isinstance(arg, Ref):
                    found.append(arg.row)
                writer = last.get(self.root(arg))
                if writer is not None:
                    found.append(writer)
            self.sources.append(tuple(dict.fromkeys(found)))
            self.roots.append(
                tuple(
                    ("row", number, out) if share is None else self.root(inputs[share])
                    for out, share in enumerate(row.shares)
                )
            )
            for place in row.writes:
                root = self.root(inputs[place])
                last[root] = number
                self.writers.setdefault(root, []).append(number)

    def root(self, arg: Arg) -> Root:
        """Whose memory an input lies in, as `Graph.storage` says."""
        if isinstance(arg, Slot):
            return "slot", self.graph.slots[arg.index].storage, 0
        return self.roots[arg.row][arg.out]

    def facts(self, arg: Arg) -> Facts | None:
        return self.graph.facts(arg)

    def shape(self, arg: Arg) -> tuple[int, ...]:
        """Sizes; () where they are unknown."""
        facts = self.graph.facts(arg)
        return facts.shape if facts is not None else ()

    def is_float(self, arg: Arg) -> bool:
        facts = self.graph.facts(arg)
        return facts is not None and facts.dtype.startswith(_FLOATS)

    def carries(self, row: int) -> bool:
        """Whether the row's output is its first tensor, looked at or laid out in another way."""
        shares = self.graph.rows[row].shares
        return bool(self.inputs[row]) and (
            (bool(shares) and shares[0] is not None and not self.graph.rows[row].writes)
            or self.ops[row] in _CARRIES
        )

    def origin(self, arg: Arg) -> Arg:
        """Where the data of an input was computed or came in: behind all rows that only carry it."""
        while isinstance(arg, Ref) and self.carries(arg.row):
            share = self.graph.rows[arg.row].shares[arg.out]
            arg = self.inputs[arg.row][share or 0]
        return arg

    def way(self, arg: Arg) -> list[int]:
        """The rows that carry an input from its origin."""
        found: list[int] = []
        while isinstance(arg, Ref) and self.carries(arg.row):
            found.append(arg.row)
            share = self.graph.rows[arg.row].shares[arg.out]
            arg = self.inputs[arg.row][share or 0]
        return found

    @cached_property
    def readers(self) -> list[list[int]]:
        """Of each row, the rows that read its results: the inverse of `sources`."""
        found: list[list[int]] = [[] for _ in self.inputs]
        for number, sources in enumerate(self.sources):
            for source in sources:
                found[source].append(number)
        return found

    @cached_property
    def slot_readers(self) -> list[list[tuple[int, int]]]:
        """Of each slot, (row, position among its tensors) of those that read it."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.graph.slots]
        for number, inputs in enumerate(self.inputs):
            for position, arg in enumerate(inputs):
                if isinstance(arg, Slot):
                    found[arg.index].append((number, position))
        return found

    @cached_property
    def slots_of(self) -> dict[Root, list[int]]:
        """Slots that lie in a memory."""
        found: dict[Root, list[int]] = {}
        for number, slot in enumerate(self.graph.slots):
            found.setdefault(("slot", slot.storage, 0), []).append(number)
        return found

    @cached_property
    def kept(self) -> frozenset[Root]:
        """Memory made here that lives on."""
        return frozenset(self.roots[row][out] for row, out in self.graph.keep)

    @cached_property
    def holes(self) -> list[tuple[int | float, ...]]:
        """Of each row, the numbers bound to its holes."""
        found: list[tuple[int | float, ...]] = []
        at = 0
        for row in self.graph.rows:
            n = sum(isinstance(arg, Hole) for arg in row.node.inputs())
            found.append(self.graph.holes[at : at + n])
            at += n
        return found

    def behind(self, rows: Iterable[int]) -> set[int]:
        """The rows and all that read from them, directly or not."""
        return self._closure(rows, self.readers)

    def before(self, rows: Iterable[int]) -> set[int]:
        """The rows and all that they read from, directly or not."""
        return self._closure(rows, self.sources)

    @staticmethod
    def _closure(rows: Iterable[int], edges: list[list[int]] | list[tuple[int, ...]]) -> set[int]:
        found = set(rows)
        pending = list(found)
        while pending:
            for row in edges[pending.pop()]:
                if row not in found:
                    found.add(row)
                    pending.append(row)
        return found
