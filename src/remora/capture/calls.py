"""A call that is appended to the op stream as a whole: the rows that it recorded op by op before, without the ops.

What a graph of the call computes is known (`GraphRows`), and what it left in the trie of the recorder when it ran
op by op (`Piece`s). `matched` finds whether that is the same, row by row; then `Call.append` leads to the same steps,
segments, slots and names as recording would, and makes only the values that are used after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from types import FrameType
from typing import Any

from remora.capture.growth import Grown, Number, Sizes
from remora.capture.provenance import user_frame
from remora.capture.recorder import MIN_CUT_ROWS, Appended, Piece, Recorder, Step
from remora.capture.value import OUT_BITS, Value
from remora.ir.node import Arg, Items, Node, Ref, Slot

_home_of, _segment_of = attrgetter("home"), attrgetter("segment")

MAX_JOINED_ROWS = 4096  # of calls in one segment
Made = tuple[int, int]  # a row of the graph and its output
Place = tuple[Any, ...]  # where in the program a call starts


@dataclass(frozen=True)
class GraphRows:
    """What a call does, at any sizes: its rows count through, its slots are its inputs by number.

    holes: of all rows. ends: for each row, how many holes there are up to its end. needed: outputs of rows that
    exist after the call.
    """

    nodes: tuple[Node, ...]
    holes: tuple[Number, ...]
    ends: tuple[int, ...]
    needed: tuple[Made, ...]


class Differs(Exception):
    """A call recorded something else than its graph; says what."""


@dataclass(frozen=True)
class Start:
    """The op stream before a call. wiring: which inputs are the same value, rows of the open segment, or slots."""

    place: Place
    step: Step
    segment: int
    n_names: int
    n_holes: int
    wiring: tuple[tuple[Any, ...], ...]


def start_of(recorder: Recorder, values: Sequence[Value], frame: FrameType | None) -> Start:
    """Where a call with these input values starts. The recorder's lock is held."""
    recorder.repair()
    step = recorder.step
    user = user_frame(frame)
    if step is recorder.empty:
        step = recorder.root(frame)
    place = (id(step), id(user.f_code) if user else 0, user.f_lasti if user else 0, recorder.context)
    segment, slots = recorder.segment, recorder.slots
    distinct = set(values)
    if {*map(_home_of, distinct)} - {recorder}:
        raise recorder.foreign(next(value for value in values if value.home is not recorder))
    alike: tuple[int, ...] = ()
    if len(distinct) < len(values):
        first: dict[Value, int] = {}
        alike = tuple([first.setdefault(value, number) for number, value in enumerate(values)])
    local: tuple[tuple[int, int], ...] = ()
    if segment in map(_segment_of, values):
        local = tuple(
            [(number, value.code) for number, value in enumerate(values) if value.segment == segment]
        )
    held = slots.keys() & distinct
    slotted = tuple([(number, slots[v]) for number, v in enumerate(values) if v in held]) if held else ()
    return Start(place, step, segment, len(slots), len(recorder.holes), (alike, local, slotted))


@dataclass
class Stretch:
    """The part of a call in one segment.

    first, rows: of the call's rows. step: of the last one. new: what becomes a slot here, in order: an input by
    number, or `~i` for the call's value `i`. holes: of its rows; of those that follow the sizes, `growing` has each
    number with its places. makes: the values that it makes, each with row and
    output as one number in the segment, and its place among the call's. drops: the call's values that nobody uses
    once this is cut.
    """

    first: int
    rows: int
    step: Step
    new: tuple[int, ...]
    holes: tuple[int | float, ...]
    growing: tuple[tuple[Grown, tuple[int, ...]], ...]
    makes: tuple[tuple[int, int], ...]
    drops: tuple[int, ...]


@dataclass
class Call:
    """See the module. values: the rows and outputs of the values that it makes, of which `needed` first."""

    start: Start
    stretches: list[Stretch]
    values: list[Made]
    code: Any = field(repr=False)  # keeps the caller's code object alive, whose id is in the place

    def append(
        self,
        recorder: Recorder,
        inputs: Sequence[Value],
        sizes: Sizes,
        metas: Sequence[Any],
        meta_at: Callable[[Sizes, int, int], Any],
    ) -> list[Value]:
        """Appends the call, whose start was found equal; gives the values that are needed after it. The lock is held.

        metas: of the call's values. meta_at: of any output, by the call's sizes, row and output.
        """
        made: list[Value | None] = [None] * len(self.values)
        last = len(self.stretches) - 1
        for number, stretch in enumerate(self.stretches):
            if not stretch.rows:
                if number < last:
                    recorder.cut()  # there is no room behind what was recorded before the call
                continue
            value = None
            slots = recorder.slots
            for source in stretch.new:
                value = inputs[source] if source >= 0 else made[~source]
                slots[value] = len(slots)  # type: ignore[index]
            holes = list(stretch.holes)
            for of_sizes, places in stretch.growing:
                now = of_sizes.at(sizes)
                for place in places:
                    holes[place] = now
            recorder.holes += holes
            if recorder.appended is not None:
                recorder.appended.append(
                    Appended(stretch.step, stretch.rows, stretch.first, partial(meta_at, sizes))
                )
            recorder.step = stretch.step
            segment, created = recorder.segment, recorder.created
            for code, index in stretch.makes:
                value = made[index] = Value(recorder, segment, code, metas[index])
                created.append(value)
            value = None  # what is dropped now must not be known here
            if number < last:
                recorder.cut()
                for index in stretch.drops:
                    made[index] = None
        return made  # type: ignore[return-value]


def matched(
    rows: GraphRows, start: Start, pieces: Sequence[Piece], sizes: Sizes, names: Sequence[Any], code: Any
) -> Call:
    """The call that was recorded as `pieces`, the last of them open.

    names: of the inputs' values.

    Raises:
        Differs: it recorded something else than its graph.
    """
    return _Matching(rows, start, pieces, sizes, names).call(code)


class _Matching:
    def __init__(
        self, rows: GraphRows, start: Start, pieces: Sequence[Piece], sizes: Sizes, names: Sequence[Any]
    ) -> None:
        self.rows, self.start, self.pieces, self.sizes = rows, start, pieces, sizes
        self.inputs: dict[Any, int] = {}
        for number, name in enumerate(names):
            self.inputs.setdefault(name, number)
        self.first_of: list[int] = []  # for each piece, its first row's number in the graph
        self.skipped: list[int] = []  # for each piece, how many rows of its segment are not the call's
        self.segments = {piece.segment: number for number, piece in enumerate(pieces)}

    def call(self, code: Any) -> Call:
        at = 0
        for number, piece in enumerate(self.pieces):
            skip = self.start.step.rows if number == 0 and piece.segment == self.start.segment else 0
            self.first_of.append(at)
            self.skipped.append(skip)
            at = self._compare(piece, skip, at)
            if number < len(self.pieces) - 1 and not piece.step.ends:
                raise Differs("its segment was cut from outside")
        if at != len(self.rows.nodes):
            raise Differs(f"{at} rows were recorded, the graph has {len(self.rows.nodes)}")
        return self._cut_up(code)

    def _compare(self, piece: Piece, skip: int, at: int) -> int:
        """Compares a piece's rows with the graph's from `at` on; the number behind the last one."""
        steps = piece.step.path()
        n_holes = self.start.n_holes if skip else 0
        for step in steps[skip:]:
            node = step.node
            if node is None or at >= len(self.rows.nodes):
                raise Differs(f"{node.op if node else 'a row'} was recorded behind the graph's last row")
            if self._as_graph(node, piece) != self.rows.nodes[at]:
                raise Differs(
                    f"row {at} is {self._as_graph(node, piece)}, in the graph {self.rows.nodes[at]}"
                )
            first = self.rows.ends[at - 1] if at else 0
            wanted = self.rows.holes[first : self.rows.ends[at]]
            found = piece.holes[n_holes : n_holes + len(wanted)]
            if [_exact(_at(number, self.sizes)) for number in wanted] != [_exact(n) for n in found]:
                raise Differs(f"row {at}: {node.op} has other numbers than in the graph")
            n_holes += len(wanted)
            if step.n_holes != n_holes:
                raise Differs(f"row {at}: {node.op} has {step.n_holes} numbers up to here, not {n_holes}")
            at += 1
        return at

    def _as_graph(self, node: Node, piece: Piece) -> Node:
        number = self.segments[piece.segment]

        def arg(item: Arg) -> Arg:
            if isinstance(item, Ref):
                return self._made_or_given(number, item.row, item.out)
            if isinstance(item, Slot):
                return self._named(piece.names[item.index])
            if isinstance(item, Items):
                return Items(tuple(map(arg, item.items)))
            return item

        return Node(
            node.op, tuple(map(arg, node.args)), tuple((k, arg(v)) for k, v in node.kwargs), node.layouts
        )

    def _named(self, name: tuple[int, int, int]) -> Arg:
        number = self.segments.get(name[0])
        if number is not None and number < len(self.first_of):
            return self._made_or_given(number, name[1], name[2])
        if name not in self.inputs:
            raise Differs(f"value {name} was read and is no input of the graph")
        return Slot(self.inputs[name])

    def _made_or_given(self, number: int, row: int, out: int) -> Arg:
        """An output of a row in a piece's segment: made in the call, or before it."""
        if row >= self.skipped[number]:
            return Ref(self.first_of[number] + row - self.skipped[number], out)
        name = (self.pieces[number].segment, row, out)
        if name not in self.inputs:
            raise Differs(f"value {name} was read and is no input of the graph")
        return Slot(self.inputs[name])

    # -- from pieces to stretches

    def _cut_up(self, code: Any) -> Call:
        values: list[Made] = list(dict.fromkeys(self.rows.needed))
        index = {made: number for number, made in enumerate(values)}
        paths = self._paths()
        last_use: dict[Made, int] = {made: len(paths) for made in values}  # needed ones: never dropped
        for number, path in enumerate(paths):
            for arg in path.new:
                if isinstance(arg, Ref):
                    made = (arg.row, arg.out)
                    if made not in index:
                        index[made] = len(values)
                        values.append(made)
                    last_use[made] = max(last_use.get(made, 0), number)
        stretches = []
        for number, path in enumerate(paths):
            first, behind = path.first, path.first + path.rows
            makes = sorted(
                (path.row(row) << OUT_BITS | out, index[row, out])
                for row, out in values
                if first <= row < behind
            )
            new = tuple(a.index if isinstance(a, Slot) else ~index[a.row, a.out] for a in path.new)
            drops = tuple(index[made] for made, use in last_use.items() if use == number)
            holes, growing = _by_growth(
                self.rows.holes[self._holes_before(first) : self._holes_before(behind)]
            )
            stretches.append(Stretch(first, path.rows, path.step, new, holes, growing, tuple(makes), drops))
        return Call(self.start, stretches, values, code)

    def _holes_before(self, row: int) -> int:
        return self.rows.ends[row - 1] if row else 0

    def _paths(self) -> list[_Path]:
        """The call's rows by segment: as few as may be, or as it was recorded, if it is short. Then what follows it is
        found again whether the call was appended or not."""
        joins = len(self.rows.nodes) >= MIN_CUT_ROWS
        open_ = self.pieces[0]
        continues = open_.segment == self.start.segment
        names = open_.names[: self.start.n_names] if continues else ()
        slots = {name: Slot(number) for number, name in enumerate(names)}
        step = self.start.step if continues else _root(open_.step)
        made = {
            number: Ref(name[1], name[2])
            for name, number in self.inputs.items()
            if continues and name[0] == self.start.segment
        }
        given = {self.inputs[name]: slot for name, slot in slots.items() if name in self.inputs}
        paths = [_Path(0, step, self.start.n_names if continues else 0, {**given, **made})]
        for number, piece in enumerate(self.pieces):
            steps = piece.step.path()[self.skipped[number] :]
            apart = paths[-1].step.rows + len(steps) > MAX_JOINED_ROWS if joins else number > 0
            if (steps or not joins) and apart:
                paths.append(_Path(self.first_of[number], _root(piece.step), 0, {}))
            for at, was in enumerate(steps, start=self.first_of[number]):
                n_holes = self._holes_before(at + 1) - self._holes_before(at)
                paths[-1].add(self.rows.nodes[at], was, n_holes, joins)
        return paths


def _root(step: Step) -> Step:
    """The start of the segment that a row is in."""
    while step.parent is not None:
        step = step.parent
    return step


class _Path:
    """Rows of a call in one segment, behind `step`. first: of the call's rows. new: what becomes a slot, in order."""

    def __init__(self, first: int, step: Step, n_slots: int, known: dict[int, Arg]) -> None:
        self.first, self.rows, self.step = first, 0, step
        self.new: list[Slot | Ref] = []
        self._before, self._n_slots = step.rows, n_slots
        self._known: dict[Slot | Ref, Arg] = {Slot(number): arg for number, arg in known.items()}

    def row(self, row: int) -> int:
        """Of one of the call's rows, in the segment."""
        return row - self.first + self._before

    def add(self, node: Node, was: Step, n_holes: int, moved: bool) -> None:
        """The next row, with all that was found out when it was recorded op by op, there or here."""
        here = Node(
            node.op,
            tuple(map(self._arg, node.args)),
            tuple((k, self._arg(v)) for k, v in node.kwargs),
            node.layouts,
        )
        n_slots = self._n_slots + len(self.new)
        if not moved and (was.node != here or was.n_slots != n_slots):
            raise Differs(f"row {self.first + self.rows}: {node.op} was wired otherwise")
        self.step = was.moved(self.step, here, n_holes, n_slots) if moved else was
        self.rows += 1

    def _arg(self, item: Arg) -> Arg:
        if isinstance(item, Items):
            return Items(tuple(map(self._arg, item.items)))
        if isinstance(item, Ref) and item.row >= self.first:
            return Ref(self.row(item.row), item.out)
        if not isinstance(item, Slot | Ref):
            return item
        found = self._known.get(item)
        if found is None:
            found = self._known[item] = Slot(self._n_slots + len(self.new))
            self.new.append(item)
        return found


def _by_growth(
    numbers: Sequence[Number],
) -> tuple[tuple[int | float, ...], tuple[tuple[Grown, tuple[int, ...]], ...]]:
    """Holes that stay the same, 0 for the others; and those, each number with its places."""
    growing: dict[Grown, list[int]] = {}
    for place, number in enumerate(numbers):
        if isinstance(number, Grown):
            growing.setdefault(number, []).append(place)
    same = tuple([0 if isinstance(number, Grown) else number for number in numbers])
    return same, tuple([(number, tuple(places)) for number, places in growing.items()])


def _at(number: Number, sizes: Sizes) -> int | float:
    return number.at(sizes) if isinstance(number, Grown) else number


def _exact(number: int | float) -> str:
    """Tells 1 from 1.0 and 0.0 from -0.0."""
    return repr(number)
