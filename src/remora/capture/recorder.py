"""The recorder: appends rows to the open segment and cuts it into a template and a binding.

Rows that were seen before are recognised by walking a trie, so a repeated segment is never encoded again: each
`Step` is one row in the context of the rows before it, and knows the template that a cut behind it makes.
"""

from __future__ import annotations

import itertools
import threading
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from sys import getrefcount
from types import FrameType
from typing import Any

from remora.capture.interrupts import uninterrupted
from remora.capture.provenance import Provenance, provenance, user_frame
from remora.capture.value import OUT_BITS, OUT_MASK, Kept, Value
from remora.errors import Disconnected
from remora.ir.graph import Template
from remora.ir.node import Node

FIRST_CUT_ROWS = 32  # a program's first segment is short, so that the executor starts early
MIN_CUT_ROWS = 144  # from here on, a segment ends at the next row that is a natural boundary,
MAX_CUT_ROWS = 512  # or here at the latest
# one call site in so many is a boundary; in more and more of a loop that has few call sites
BOUNDARIES = (
    (256, 24),
    (384, 8),
    (MAX_CUT_ROWS, 2),
)  # up to so many rows, in steps that divide the one before
MAX_STEPS = 1_000_000  # then the trie starts anew; only speed is lost

NOWHERE = 0  # the segment of values that never were
_segments = itertools.count(1)  # never repeats in a process, so a value of an old session cannot look local


def _count_unused() -> int:
    """References to a value that only the list of created values knows, as `_survivors` counts them."""
    counts = [getrefcount(value) for value in [Value(None, 0, 0, None)]]
    return counts[0]


_UNUSED = _count_unused()


class Step:
    """One row after the rows before it. The counts make it the single record of what is committed."""

    __slots__ = (
        "alone",
        "code",
        "ends",
        "first",
        "holes",
        "least_s",
        "metas",
        "n_holes",
        "n_slots",
        "next",
        "node",
        "outcome",
        "parent",
        "rows",
        "template",
        "uncounted",
        "where",
    )

    def __init__(self, parent: Step | None = None) -> None:
        self.parent = parent
        self.next: dict[tuple[Any, ...], Step] = {}
        self.node: Node | None = None
        self.where: Provenance | None = None
        self.code: Any = None  # keeps the caller's code object alive, whose id is in the key
        self.template: CapturedTemplate | None = None
        self.rows = 0
        self.uncounted = parent.uncounted if parent is not None else 0  # rows of calls that stay together
        self.n_holes = 0
        self.n_slots = 0
        self.first = parent.first if parent is not None else False  # in a program's first segment
        self.ends = False  # the segment is cut behind this row
        self.alone = False  # a branch behind this row is asked for by itself (device/ahead.py)
        # of the last call recorded here: its numbers, its inputs' metadata, what it gave (device/infer.py)
        self.holes: list[int | float] | None = None
        self.metas: list[Any] | None = None
        self.outcome: Any = None
        self.least_s: float | None = None  # that it takes to run, once somebody asked (session/weighty.py)

    def moved(self, parent: Step, node: Node, n_holes: int, n_slots: int) -> Step:
        """The same row behind another one, in a segment that goes on for as long as its call does.

        node: as it is there. n_holes: of its own. n_slots: up to here.
        """
        step = Step(parent)
        step.node, step.where, step.code = node, self.where, self.code
        step.rows, step.uncounted = parent.rows + 1, parent.uncounted + 1
        step.n_holes, step.n_slots = parent.n_holes + n_holes, n_slots
        step.holes, step.metas, step.outcome = self.holes, self.metas, self.outcome
        return step

    def path(self) -> list[Step]:
        """The rows of the segment up to this one, from the first on."""
        steps: list[Step] = []
        at: Step | None = self
        while at is not None and at.node is not None:
            steps.append(at)
            at = at.parent
        steps.reverse()
        return steps


@dataclass(frozen=True)
class CapturedTemplate:
    """A template with its index in the session and the provenance of its rows, as first seen."""

    template: Template
    index: int
    where: tuple[Provenance | None, ...]


@dataclass(frozen=True)
class Piece:
    """A stretch of the op stream inside one segment, written down while it was recorded. It keeps no value alive.

    step: of its last row. names, holes: of the segment's slots and constants from its start to here.
    """

    segment: int
    step: Step
    names: tuple[tuple[int, int, int], ...]
    holes: tuple[int | float, ...]


@dataclass(frozen=True)
class Appended:
    """Rows of a call that was appended as a whole, whose steps saw another call last.

    step: of the last one. rows: how many. first: the first one's number in the call. meta: metadata of an output, by
    row of the call and output.
    """

    step: Step
    rows: int
    first: int
    meta: Callable[[int, int], Any]

    def covers(self, row: int, steps: Sequence[Step]) -> bool:
        """Whether a row of a segment is one of these; one that was interrupted while it was appended covers none."""
        end = self.step.rows
        return end - self.rows <= row < end <= len(steps) and steps[end - 1] is self.step

    def meta_at(self, row: int, out: int) -> Any:
        """Of an output, by row of the segment."""
        return self.meta(self.first + row - (self.step.rows - self.rows), out)


@dataclass
class Segment:
    """A cut segment: everything that is needed to send it."""

    number: int
    captured: CapturedTemplate
    slots: list[Value]
    holes: list[int | float]
    keep: tuple[int, ...]  # flat (row, out)
    frees: tuple[int, ...]  # flat (distance, row, out)
    step: Step  # of its last row
    kept: list[Value]  # the outputs in `keep`
    appended: Sequence[Appended] = ()  # if the recorder takes them down

    def uploaded(self) -> frozenset[int]:
        """Slots whose value came from the client."""
        return frozenset(slot for slot, value in enumerate(self.slots) if value.uploaded)

    def names(self) -> list[tuple[int, int, int]]:
        """The slots' names: segment, row, output."""
        return [(value.segment, value.code >> OUT_BITS, value.code & OUT_MASK) for value in self.slots]


class Recorder:
    """The open segment of one session.

    Args:
        session: the session's name, for errors about values that outlive it.
        commit: called under the lock, uninterrupted, with each segment that is cut; from then on it will be sent.
        transmit: called under the lock after it; may block and may be interrupted.
    """

    def __init__(self, session: str, commit: Callable[[Segment], None], transmit: Callable[[], None]) -> None:
        self.session = session
        self.lock = threading.RLock()
        self.graveyard: deque[tuple[int, int]] = deque()
        self._rows = 0  # of segments that were cut
        self.closed: Exception | None = None
        self._commit = commit
        self._transmit = transmit
        self._captured: dict[bytes, CapturedTemplate] = {}
        self._roots: dict[tuple[Any, ...], Step] = {}
        self._n_steps = 0
        self._starts_program = True
        self.context: Any = None  # what else rows depend on: the default dtype
        self.tape: list[Piece] | None = (
            None  # takes down each segment that is cut, while somebody wants to know
        )
        self.whole_calls = False  # whether calls may be appended without their ops (capture/calls.py)
        self.reads_ahead = False  # whether what nobody has asked for may be asked for (device/ahead.py)
        self.appended: list[Appended] | None = None  # of the open segment, where somebody wants to know
        self.holds: Callable[[Step], bool] | None = None  # whether a segment goes on where it would end
        self.agreed: set[int] = set()  # ids of the ops that the executor is known to have in the same form
        self._open()

    def _open(self) -> None:
        self.segment = next(_segments)
        self.empty = Step()
        self.step = self.empty
        self.slots: dict[Value, int] = {}
        self.holes: list[int | float] = []
        self.created: list[Value] = []

    @property
    def ops(self) -> int:
        """Rows recorded so far."""
        return self._rows + self.step.rows

    @property
    def templates(self) -> int:
        return len(self._captured)

    def piece(self) -> Piece:
        """The open segment up to here."""
        names = tuple(value.name for value in self.slots)
        return Piece(self.segment, self.step, names, tuple(self.holes))

    def number(self) -> int:
        """A segment number for a value that comes from outside: an upload."""
        return next(_segments)

    def renumber(self) -> None:
        """Gives the open segment, which has no rows yet, a number above all that were given out."""
        assert not self.created
        self.segment = next(_segments)

    def root(self, frame: FrameType | None) -> Step:
        """Where the open segment starts in the trie: apart by the user's line, so that lines are never mixed."""
        user = user_frame(frame)
        first = self._starts_program
        key = (id(user.f_code) if user else 0, user.f_lasti if user else 0, first, self.context)
        root = self._roots.get(key)
        if root is None:
            root = self._roots[key] = Step()
            root.first = first
            root.code = user.f_code if user is not None else None
        return root

    def add_slot(self, value: Value) -> int:
        """The slot of a value from outside the segment, new or not yet used in it."""
        if value.home is not self:
            raise self.foreign(value)
        slot = self.slots[value] = len(self.slots)
        return slot

    def foreign(self, value: Value) -> Exception:
        return Disconnected(
            f"this tensor lives in session {value.home.session}, which has ended or belongs to another process; "
            f"the current session is {self.session}. Copy what you want to keep with .cpu() before disconnect() or fork"
        )

    def repair(self) -> None:
        """Drops what an interrupted recording left behind: only what the step counts has happened."""
        step = self.step
        del self.holes[step.n_holes :]
        for value in list(self.slots)[step.n_slots :]:
            del self.slots[value]

    def take_back(self, value: Value, ops: frozenset[str]) -> bool:
        """Undoes the last row if it is one of `ops` and made `value`; the value then names nothing."""
        step = self.step
        if value.segment != self.segment or step.node is None or step.node.op not in ops:
            return False
        if value.code != (step.rows - 1) << OUT_BITS or step.parent is None:
            return False
        self.step = step.parent
        self.repair()
        self.created.remove(value)
        value.segment = NOWHERE
        return True

    def learn(
        self, step: Step, key: tuple[Any, ...], node: Node, n_holes: int, frame: FrameType | None
    ) -> Step:
        """Adds a row that was never seen here behind `step`."""
        if self._n_steps >= MAX_STEPS:
            self._roots.clear()
            self._n_steps = 0
        self._n_steps += 1
        after = Step(step)
        after.node = node
        after.where = provenance(frame)
        after.code = frame.f_code if frame is not None else None
        after.rows = step.rows + 1
        after.n_holes = step.n_holes + n_holes
        after.n_slots = len(self.slots)
        after.ends = _ends(after.rows - after.uncounted, after.first, node, frame)
        step.next[key] = after
        return after

    def cut_before_call(self) -> None:
        """A call is about to be appended as a whole. Calls that follow each other without a sync are found again where
        they start, since no segment goes on for more than a few; where their rows take long, for longer."""
        if self.step.uncounted >= MIN_CUT_ROWS and (self.holds is None or not self.holds(self.step)):
            self.cut()

    def cut(self) -> None:
        """Ends the open segment, if it has rows, and hands it on."""
        with self.lock:
            with uninterrupted:
                segment = self.end_segment()
                if segment is None:
                    return
                self._commit(segment)
            self._transmit()

    def end_segment(self) -> Segment | None:
        """Ends the open segment, if it has rows; to be called uninterrupted, until the segment is committed."""
        self.repair()
        step = self.step
        if not step.rows:
            return None
        captured = step.template or self._template(step)
        if self.tape is not None:
            self.tape.append(self.piece())
        kept = self._survivors()
        keep = tuple(n for value in kept for n in (value.code >> OUT_BITS, value.code & OUT_MASK))
        flat = tuple(n for s, c in self.take_frees() for n in (self.segment - s, c >> OUT_BITS, c & OUT_MASK))
        slots = list(self.slots)
        self.slots.clear()  # calls that led here still know it, and would keep its values alive
        segment = Segment(
            self.segment, captured, slots, self.holes, keep, flat, step, kept, self.appended or ()
        )
        if self.appended:
            self.appended = []
        self._rows += step.rows
        self._starts_program = False
        self._open()
        return segment

    def program_ends(self) -> None:
        """A sync: the next segment is the first of a new program."""
        self._starts_program = True

    def in_use(self) -> list[Value]:
        """The open segment's outputs that are still in use, the last first."""
        return [value for value in reversed(self.created) if getrefcount(value) > _UNUSED]

    def _survivors(self) -> list[Value]:
        """The open segment's outputs that are still in use; the executor keeps those."""
        kept = [value for value in self.created if getrefcount(value) > _UNUSED]
        for value in kept:
            value.__class__ = Kept  # from here on, its end is an event
        return kept

    def take_frees(self) -> list[tuple[int, int]]:
        """Names (segment, code) of kept values that died since the last call."""
        graveyard = self.graveyard
        return [graveyard.popleft() for _ in range(len(graveyard))]

    def _template(self, step: Step) -> CapturedTemplate:
        rows = step.path()
        template = Template(tuple(row.node for row in rows if row.node is not None))
        known = self._captured.get(template.id)
        index = known.index if known is not None else len(self._captured)
        captured = CapturedTemplate(
            template, index, tuple(row.where for row in rows)
        )  # one template, many places
        self._captured.setdefault(template.id, captured)
        step.template = captured
        return captured


def _ends(rows: int, first: bool, node: Node, frame: FrameType | None) -> bool:
    """Whether a segment is cut behind a row.

    The boundary is a property of the call site, not a count: a loop that never syncs is then cut at the same
    places in each turn, and its templates repeat. The same program gives the same cuts in every process.
    """
    if first:
        return rows >= FIRST_CUT_ROWS
    if rows < MIN_CUT_ROWS:
        return False
    if rows >= MAX_CUT_ROWS or frame is None:
        return rows >= MAX_CUT_ROWS
    site = f"{node.op} {frame.f_code.co_qualname} {frame.f_lasti}"
    one_in = next(one_in for below, one_in in BOUNDARIES if rows < below)
    return zlib.crc32(site.encode()) % one_in == 0
