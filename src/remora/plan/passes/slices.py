"""A graph whose batch is made slice by slice: each row that separates is made once for each slice, in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from remora.ir.annotated import Facts, Graph, Row
from remora.ir.node import FREE, Arg, Hole, Items, Node, Ref, Slot
from remora.plan.passes.crossing import crossing
from remora.plan.passes.separable import Batch
from remora.plan.rewrite import Output, Rewrite, first_holes

Place = Callable[[int, int], int]
"""The executor of a row's slice: of row and number of the slice."""


class Unsliceable(Exception):
    """The graph cannot be made in slices; says why."""


def sliced(now: Rewrite, batch: Batch, sizes: Sequence[int], place: Place) -> Rewrite:
    """The rows of `now.graph` that separate, made in slices.

    Slices of inputs are views of them, cut where they are. Rows that read nothing of the batch are made on each
    executor that reads them. Rows that need all of it, and outputs that live on, are made where `now.graph` has them.

    Args:
        sizes: entries of each slice; they add up to the batch. place: where a row's slice is made.

    Raises:
        Unsliceable: a value that has to be put together again is laid out as its kernel likes.
    """
    return _Slicing(now, batch, sizes, place).run()


class _Slicing:
    def __init__(self, now: Rewrite, batch: Batch, sizes: Sequence[int], place: Place) -> None:
        assert sum(sizes) == batch.count
        self.now, self.graph, self.batch, self.sizes = now, now.graph, batch, sizes
        self.place, self.homes = place, now.graph.executors
        self.starts = [sum(sizes[:at]) for at in range(len(sizes))]
        self.first_hole = first_holes(self.graph)
        self.rows: list[Row] = []
        self.origins: list[int] = []
        self.holes: list[int | float] = []
        self.bound: list[int | None] = []
        self.executors: list[int] = []
        self.pieces: dict[tuple[Ref | Slot, int], Ref | Slot] = {}  # of a value in the batch, by slice
        self.cut_here: dict[tuple[Ref | Slot, int, int, int], Ref] = {}  # slices of values that came whole
        self.whole: dict[tuple[int, int], int] = {}  # rows made as a whole, by executor
        self.together: dict[Ref, Ref] = {}  # values put together again

    def run(self) -> Rewrite:
        graph, batch = self.graph, self.batch
        start = 0
        for number in [*sorted(batch.joined), len(graph.rows)]:
            self._region(range(start, number))
            if number < len(graph.rows) and number in batch.joined:
                self._joined_row(number)
            start = number + 1
        outputs = {output: self._ends_as(Ref(*made)) for output, made in sorted(self.now.outputs.items())}
        kept, wanted = (
            frozenset(outputs[output] for output, made in self.now.outputs.items() if made in of)
            for of in (graph.keep, graph.wants)
        )
        made = Graph(
            tuple(self.rows),
            graph.slots,
            tuple(self.holes),
            kept,
            wanted,
            graph.stage,
            tuple(self.executors),
            graph.template,
        )
        return Rewrite(
            made, tuple(self.origins), tuple(self.bound), outputs, crossing(self.rows, self.executors)
        )

    # -- rows

    def _region(self, rows: range) -> None:
        """Rows up to one that needs all of the batch: slice by slice, with what they cut of whole values first."""
        mine = [number for number in rows if self.batch.rows[number] is not None]
        for number in mine:
            found = self.batch.rows[number]
            assert found is not None
            for arg, dim in zip(self.graph.rows[number].tensors(), found.ins, strict=True):
                if dim is not None and self._is_given(arg):
                    for at in range(len(self.sizes)):
                        self._cut(arg, dim, at, self._home(arg))
        for at in range(len(self.sizes)):
            for number in mine:
                self._slice_row(number, at)

    def _home(self, arg: Ref | Slot) -> int:
        """Where a value is as a whole; of one from outside, where it is read first."""
        return self.homes[self._reader(arg) if isinstance(arg, Slot) else arg.row]

    def _is_given(self, arg: Ref | Slot) -> bool:
        """Whether a value is there before any slice is made, where the graph has it."""
        if isinstance(arg, Slot):
            return True
        return arg.row in self.batch.joined

    def _slice_row(self, number: int, at: int) -> None:
        row, found = self.graph.rows[number], self.batch.rows[number]
        assert found is not None
        executor = self.place(number, at)
        args = [
            self._whole(arg, executor) if dim is None else self._piece(arg, dim, at, executor)
            for arg, dim in zip(row.tensors(), found.ins, strict=True)
        ]
        outs = tuple(
            facts if facts is None or dim is None else self._part_of(facts, dim, at)
            for facts, dim in zip(row.outs, found.outs, strict=True)
        )
        sizes = frozenset(_hole(row.node, *where) for where in found.sizes)
        made = self._add(
            replace(row, node=_renamed(row.node, args), outs=outs, writes=() if found.pure else row.writes),
            number,
            executor,
            sizes,
            at,
        )
        for out in range(len(outs)):
            self.pieces[Ref(number, out), at] = Ref(made, out)

    def _joined_row(self, number: int) -> None:
        row = self.graph.rows[number]
        args = [self._together(arg) for arg in row.tensors()]
        home = self.homes[number]
        self.whole[number, home] = self._add(replace(row, node=_renamed(row.node, args)), number, home)

    # -- values

    def _piece(self, arg: Ref | Slot, dim: int, at: int, executor: int) -> Ref | Slot:
        """A value's slice, for a row on an executor."""
        made = (
            self.pieces.get((arg, at)) if isinstance(arg, Ref) and self.batch.dim(arg) is not None else None
        )
        if made is not None:
            return made
        return self._cut(arg, dim, at, self._home(arg) if self._is_given(arg) else executor)

    def _cut(self, arg: Ref | Slot, dim: int, at: int, executor: int) -> Ref:
        """A slice of a value that is whole."""
        known = self.cut_here.get((arg, dim, at, executor))
        if known is not None:
            return known
        facts = self.graph.facts(arg)
        assert facts is not None
        each = facts.shape[dim] // self.batch.count
        start, end = self.starts[at] * each, (self.starts[at] + self.sizes[at]) * each
        value = self._whole(arg, executor)
        node = Node("aten.slice.Tensor", (value, Hole("int"), Hole("int"), Hole("int")))
        part = self._part_of(facts, dim, at)
        origin = arg.row if isinstance(arg, Ref) else self._reader(arg)
        meaning = (
            self.graph.rows[arg.row].meaning if isinstance(arg, Ref) else self.graph.slots[arg.index].meaning
        )
        row = replace(
            self.graph.rows[origin], node=node, outs=(part,), shares=(0,), writes=(), meaning=meaning
        )
        made = Ref(self._add_own(row, origin, executor, (dim, start, end)))
        if dim:  # dense again, so that rows may view it as they view the whole
            dense = replace(row, node=Node("aten.clone.default", (made,)), shares=(None,))
            made = Ref(self._add_own(dense, origin, executor, ()))
        self.cut_here[arg, dim, at, executor] = made
        return made

    def _whole(self, arg: Ref | Slot, executor: int) -> Ref | Slot:
        """A value of which no slice has a part, for a row on an executor: made there, if it needs no batch."""
        if isinstance(arg, Slot):
            return arg
        if self.batch.rows[arg.row] is not None:  # the same for all slices
            return self.pieces[arg, 0]
        if arg.row in self.batch.joined:
            executor = self.homes[arg.row]
        for number in self._missing(arg.row, executor):
            row = self.graph.rows[number]
            args = [
                one if isinstance(one, Slot) else Ref(self.whole[one.row, executor], one.out)
                for one in row.tensors()
            ]
            self.whole[number, executor] = self._add(
                replace(row, node=_renamed(row.node, args)), number, executor
            )
        return Ref(self.whole[arg.row, executor], arg.out)

    def _missing(self, number: int, executor: int) -> list[int]:
        """Rows that an executor has not made yet of those that a whole row needs, itself among them, in order."""
        missing, pending = set[int](), [number]
        while pending:
            at = pending.pop()
            if (at, executor) not in self.whole and at not in missing:
                missing.add(at)
                pending += [one.row for one in self.graph.rows[at].tensors() if isinstance(one, Ref)]
        return sorted(missing)

    def _together(self, arg: Ref | Slot) -> Ref | Slot:
        """A value as a whole, where the graph has it."""
        dim = self.batch.dim(arg)
        if dim is None or isinstance(arg, Slot):
            return self._whole(arg, self._home(arg))
        known = self.together.get(arg)
        if known is not None:
            return known
        row = self.graph.rows[arg.row]
        shared = row.shares[arg.out]
        if shared is None:
            made = self._joined(row, arg, dim)
        else:
            source = self._together(row.tensors()[shared])
            if row.writes:  # the value that was written, as it is now
                assert isinstance(source, Ref)
                made = source
            else:
                node = _renamed(row.node, [source])
                made = Ref(self._add(replace(row, node=node), arg.row, self.homes[arg.row]), arg.out)
        if not any(row.writes for row in self.graph.rows):
            self.together[arg] = made
        return made

    def _joined(self, row: Row, arg: Ref, dim: int) -> Ref:
        layouts = row.node.layouts[arg.out : arg.out + 1]
        if layouts == (FREE,):
            raise Unsliceable(f"row {arg.row} ({row.node.op}) is laid out as its kernel likes")
        parts = [self.pieces[arg, at] for at in range(len(self.sizes))]
        node = Node(
            "aten.cat.default", (Items(tuple(parts)), Hole("int")), (), layouts if any(layouts) else ()
        )
        made = replace(row, node=node, outs=(row.outs[arg.out],), shares=(None,), writes=())
        return Ref(self._add_own(made, arg.row, self.homes[arg.row], (dim,)))

    def _ends_as(self, made: Ref) -> Output:
        """Where an output that lives on is made."""
        end = self._together(made)
        assert isinstance(end, Ref)
        return end.row, end.out

    # -- writing down

    def _add(
        self, row: Row, origin: int, executor: int, sizes: frozenset[int] = frozenset(), at: int = 0
    ) -> int:
        """A row in place of one of the graph, with its numbers; those in `sizes` become a slice's."""
        first, behind = self.first_hole[origin], self.first_hole[origin + 1]
        for hole in range(first, behind):
            value = self.graph.holes[hole]
            if hole - first in sizes:
                assert isinstance(value, int)
                self.holes.append(value // self.batch.count * self.sizes[at])
                self.bound.append(None)
            else:
                self.holes.append(value)
                self.bound.append(self.now.holes[hole])
        return self._written(row, origin, executor)

    def _add_own(self, row: Row, origin: int, executor: int, numbers: Sequence[int]) -> int:
        """A row of the pass's own, with its numbers."""
        self.holes += numbers
        self.bound += [None] * len(numbers)
        return self._written(row, origin, executor)

    def _written(self, row: Row, origin: int, executor: int) -> int:
        self.rows.append(row)
        self.origins.append(self.now.rows[origin])
        self.executors.append(executor)
        return len(self.rows) - 1

    def _part_of(self, facts: Facts, dim: int, at: int) -> Facts:
        shape = list(facts.shape)
        shape[dim] = shape[dim] // self.batch.count * self.sizes[at]
        return replace(facts, shape=tuple(shape))

    def _reader(self, slot: Slot) -> int:
        return next(at for at, row in enumerate(self.graph.rows) if slot in row.tensors())


def _hole(node: Node, position: int, place: int | None) -> int:
    """Which of the row's numbers an argument is."""
    seen = 0
    for at, arg in enumerate(node.args):
        for item_at, item in enumerate(arg.items if isinstance(arg, Items) else (arg,)):
            if at == position and (place is None or item_at == place):
                assert isinstance(item, Hole), "whole numbers are holes"
                return seen
            seen += isinstance(item, Hole)
    raise AssertionError("a rule names an argument of its row")


def _renamed(node: Node, tensors: Sequence[Ref | Slot]) -> Node:
    """The node with other tensors, in the order of `Row.tensors()`."""
    given = iter(tensors)

    def one(arg: Arg) -> Arg:
        match arg:
            case Ref() | Slot():
                return next(given)
            case Items(items):
                return Items(tuple([one(item) for item in items]))
        return arg

    args = tuple([one(arg) for arg in node.args])
    return Node(node.op, args, tuple([(name, one(arg)) for name, arg in node.kwargs]), node.layouts)
