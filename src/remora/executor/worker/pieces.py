"""Which rows of a program run together as one graph, and in which order everything runs. Pure.

A *piece* is rows that do the same at each run: the same kernels on the same shapes. Between pieces stand the rows
that do not (`eager`): attention over a cache that grows, random numbers, writes in place. Rows are reordered, as far
as nobody can tell, so that pieces are few and large. Registers are those of program.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

MIN_LAUNCHES = 3  # kernels in a piece; fewer are launched as fast one by one


@dataclass(frozen=True, slots=True)
class Row:
    """The instructions of one row, by their places in the program.

    reads, makes: registers from outside, and those that it sets. same: it may be in a graph. fence: it stays
    behind all rows before it, and before all rows behind it. views: register it makes: register that it shares
    memory with. launches: it runs a kernel, and does not only look at memory in another way.
    """

    number: int
    instructions: tuple[int, ...]
    reads: frozenset[int]
    makes: tuple[int, ...]
    same: bool
    fence: bool
    views: Mapping[int, int]
    launches: bool


@dataclass(frozen=True, slots=True)
class Stage:
    """Rows that run one after another, as a graph if `piece`.

    takes: registers that the rows read and others make, ascending. gives: those that they make and that others
    read, or that are kept. drops: registers that nothing reads afterwards.
    """

    piece: bool
    rows: tuple[Row, ...]
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    drops: tuple[int, ...]


def arrange(rows: Sequence[Row], kept: Collection[int], uncopyable: Collection[int]) -> tuple[Stage, ...]:
    """The stages of a program.

    kept: registers that live on. uncopyable: registers whose address changes from run to run and that no graph can
    have a copy of; a graph reads one only if a graph made it.
    """
    same = {row.number for row in rows if row.same}
    while True:
        stages = _stages(rows, same, kept)
        out = _outcasts(stages, uncopyable)
        if not out:
            return stages
        same -= out


def _stages(rows: Sequence[Row], same: Collection[int], kept: Collection[int]) -> tuple[Stage, ...]:
    phases = _Phases(same)
    for row in rows:
        phases.add(row)
    phases.settle()
    return _with_registers([(at % 2 == 1, phases.rows[at]) for at in sorted(phases.rows)], kept)


class _Phases:
    """When each row runs: eager ones in even phases, pieces in odd ones."""

    def __init__(self, same: Collection[int]) -> None:
        self.rows: dict[int, list[Row]] = {}
        self._same = same
        self._made_in: dict[int, int] = {}
        self._waiting: dict[
            int, Row
        ] = {}  # by what they make: views of what is outside, until somebody reads them
        self._last = self._earliest = 0

    def add(self, row: Row) -> None:
        if self._can_wait(row):
            self._waiting.update(dict.fromkeys(row.makes, row))
            return
        if row.fence:
            self.settle()
        views = [self._waiting[register] for register in sorted(row.reads) if register in self._waiting]
        if row.number not in self._same:
            self._settle(views, self._first())
        phase = max((self._made_in.get(register, 0) for register in row.reads), default=0)
        phase = max(phase, self._last if row.fence else self._earliest)
        phase += (phase % 2 == 1) != (row.number in self._same)
        self._settle(views, phase)
        if row.fence:
            self._earliest = phase
        self._put(row, phase)

    def settle(self) -> None:
        """Whoever reads them, views that wait come before what comes next."""
        self._settle(list(self._waiting.values()), self._first())

    def _can_wait(self, row: Row) -> bool:
        """A view that a piece makes for itself need not be shown to it, wherever it stands in the program."""
        if row.launches or row.fence or row.number not in self._same:
            return False
        return not any(register in self._made_in for register in row.reads)

    def _first(self) -> int:
        """The phase of a piece that reads nothing."""
        return self._earliest + (self._earliest % 2 == 0)

    def _settle(self, views: Collection[Row], phase: int) -> None:
        for row in views:
            if row.makes and row.makes[0] in self._waiting:
                for register in row.makes:
                    del self._waiting[register]
                self._settle([self._waiting[r] for r in sorted(row.reads) if r in self._waiting], phase)
                self._put(row, phase)

    def _put(self, row: Row, phase: int) -> None:
        self._last = max(self._last, phase)
        self.rows.setdefault(phase, []).append(row)
        self._made_in.update(dict.fromkeys(row.makes, phase))


def _with_registers(groups: list[tuple[bool, list[Row]]], kept: Collection[int]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    later: set[int] = set()  # read by a stage behind
    for piece, rows in reversed(groups):
        made = {register for row in rows for register in row.makes}
        read = {register for row in rows for register in row.reads}
        takes = tuple(sorted(read - made))
        gives = tuple(sorted(register for register in made if register in later or register in kept))
        drops = tuple(sorted(register for register in made | read if register not in later | set(kept)))
        stages.append(Stage(piece, tuple(rows), takes, gives, drops))
        later |= set(takes)
    return tuple(reversed(stages))


def _outcasts(stages: Sequence[Stage], uncopyable: Collection[int]) -> set[int]:
    """Rows that must run eagerly after all."""
    graphed = {register for stage in stages if stage.piece for row in stage.rows for register in row.makes}
    out: set[int] = set()
    for stage in stages:
        if not stage.piece:
            continue
        foreign = {r for r in stage.takes if r in uncopyable and r not in graphed}
        readers = {row.number for row in stage.rows if foreign & row.reads}
        out |= readers or {row.number for row in stage.rows if _shows_outside(row, stage)}
    if out:
        return out
    small = [stage for stage in stages if stage.piece and sum(r.launches for r in stage.rows) < MIN_LAUNCHES]
    return {row.number for row in small[0].rows} if small else set()


def _shows_outside(row: Row, stage: Stage) -> bool:
    """Whether the row makes a view of what is outside that is read outside: it must be one of the real thing."""
    sources = {made: source for member in stage.rows for made, source in member.views.items()}
    for register in row.makes:
        if register in stage.gives:
            while register in sources:
                register = sources[register]
            if register in stage.takes:
                return True
    return False


def registers_written(rows: Sequence[Row], written: Mapping[int, Collection[int]], n_slots: int) -> set[int]:
    """The slots whose memory rows write. written: row number: registers that it writes, by themselves or as views."""
    sources = {made: source for row in rows for made, source in row.views.items()}
    slots: set[int] = set()
    for registers in written.values():
        for register in registers:
            while register in sources:
                register = sources[register]
            if register < n_slots:
                slots.add(register)
    return slots
