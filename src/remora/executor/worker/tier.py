"""How a program runs on a device that has graphs: interpreted at first, and once it repeats, in pieces.

A `Tier` is one site with one set of outputs to keep, and the weights of one layer. Its first runs are interpreted,
and watched (watching.py); then `pieces.arrange` says which rows form graphs, and the run after that records them.
From then on a piece is replayed where its guards hold, and interpreted where they do not, each time anew:

- numbers and metadata are those that were seen;
- an input that has always been in the same place still is (weights, what other graphs made); others are copied to
  where the graph reads them.

So a graph reads only memory that is alive and of the right kind, and holds on to nothing but its own. What it
made lies in memory that its next run overwrites: `make_way` moves what still has a name.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from remora.executor.worker.capturable import judge
from remora.executor.worker.failure import is_fatal, kind_of
from remora.executor.worker.loose import WIDTH
from remora.executor.worker.loosened import agree, appended, compared, loosened, needs
from remora.executor.worker.pieces import Stage, arrange
from remora.executor.worker.program import Failure, Instruction, Program, Registers, fill, walk
from remora.executor.worker.recorded import Cache, Holes, Piece, Pin, Plan
from remora.executor.worker.tables import Table
from remora.executor.worker.watching import Watched, same_meta
from remora.ir.graph import Template
from remora.wire.binding import Name

if TYPE_CHECKING:
    from remora.executor.worker.tiers import Tiers

WATCHED_RUNS = 2  # before a program's pieces are recorded
MAX_MISSES = 2  # runs in which a guard failed, one after another, until a program is recorded anew
MAX_RECORDINGS = 4  # of one program that were not worth it; then it stays interpreted
WORTH_RUNS = 32  # a recording is worth it if it is replayed so often
CHECKED_RUNS = 2  # of a piece with other kernels than PyTorch's: its results are compared with theirs


class Tier:
    """One site's program with one set of outputs to keep."""

    def __init__(self, tiers: Tiers, template: Template, program: Program, names: list[Name]) -> None:
        self.tiers, self.names = tiers, names
        self.alone = False  # the only one of its site
        self.kernels = tiers.kernels
        self.loose = tiers.kernels is not None and not tiers.exact
        self._template, self._program = template, program
        self.plan: Plan | None = None
        self.recordings = self.misses = 0
        self.ran = False  # what runs only once is not watched
        self.different: set[int] = set()  # registers that they found to be of another kind
        self.elsewhere: set[int] = set()  # registers that guards of the last runs found in another place
        self.moving: dict[int, int] = {}  # those that this made record again, and how often
        self._steps: list[tuple[Program, list[tuple[Instruction, ...]]]] = []

    @cached_property
    def watched(self) -> Watched:
        appends = self.kernels is not None
        return Watched(self._template, self._program, self.tiers.recorder, appends, self.loose)

    @property
    def interpreted(self) -> bool:
        """Whether it will never be otherwise."""
        return self.recordings >= MAX_RECORDINGS and self.plan is None

    @cached_property
    def _writes(self) -> bool:
        return any(judge(node).written for node in self._template.nodes)

    def make_way(self, names: list[Name]) -> None:
        """Before the slots of a run, with these names, are looked up: moves values out of memory that the run
        overwrites, and those that it writes in place into memory of their own."""
        plan, lent = self.plan, self.tiers.values.lent
        if lent and self._writes:
            self.tiers.own([names[slot] for slot in self.watched.written_slots()])
        if plan is None:
            if self.ran and not self.interpreted:
                self.watched.bind(names)
            return
        living = [storage for storage in plan.outputs if lent[storage]]
        if living:
            self.tiers.move([plan.outputs[storage] for storage in living])

    def run(
        self,
        program: Program,
        slots: list[Any],
        holes: list[int | float],
        progress: Any,
        restrided: list[int],
    ) -> Registers:
        """As `program.run`, and with the same results. Raises Failure."""
        registers = fill(program, slots, holes)
        plan = self.plan
        self.ran, first = True, not self.ran
        if plan is None and not (self.interpreted or first):
            if self.watched.runs < WATCHED_RUNS:
                return self._watch(program, registers, progress, restrided)
            plan = self._arranged() if self.tiers.has_room() else None
        if plan is None or len(program.instructions) != self.watched.n_instructions:
            return self._interpreted(program, registers, progress, restrided)
        if not plan.holes.hold(holes):
            self._missed(changed=True)
            return self._interpreted(program, registers, progress, restrided)
        if not plan.reserve(registers):
            self._cannot_append(plan, registers)
            return self._interpreted(program, registers, progress, restrided)
        return self._staged(plan, program, registers, progress, restrided)

    def _interpreted(
        self, program: Program, registers: Registers, progress: Any, restrided: list[int]
    ) -> Registers:
        try:
            walk(program.instructions, registers, progress, restrided)
        except Failure as failure:
            done = {at for at, step in enumerate(program.instructions) if step.row < failure.row}
            self._resume(program, failure, done, progress, restrided)
        return registers

    def _watch(
        self, program: Program, registers: Registers, progress: Any, restrided: list[int]
    ) -> Registers:
        try:
            self.watched.watch(program, registers, progress, restrided)
        except Failure as failure:
            done = {at for at, step in enumerate(program.instructions) if step.row < failure.row}
            self._resume(program, failure, done, progress, restrided)
        return registers

    def _arranged(self) -> Plan | None:
        watched = self.watched
        moved = {*watched.moved, *self.moving}
        stages = arrange(watched.rows(), watched.kept, watched.uncopyable(moved))
        if watched.heavy or not any(stage.piece for stage in stages):
            self.recordings = MAX_RECORDINGS
            return None
        if self.kernels is not None:
            needed = needs(stages, watched, self._template, self.loose)
            if self.kernels.broken(needed):
                self._do_without()
                return None
            if not self.kernels.ready(needed):
                return None  # they are being compiled; until then, as before
        self.recordings += 1
        self._steps.clear()
        holes = Holes(watched.fixed(stages), watched.n_slots)
        found = [one for stage in stages if stage.piece for one in appended(stage, watched)]
        caches = tuple(Cache(one, watched.metas[one.new], watched.along[one.grown]) for one in found)
        table = Table(len(caches), WIDTH, self.tiers.device) if caches else None
        pool = self.tiers.recorder.pool()
        self.plan = Plan(stages, holes, [None] * len(stages), pool, caches, table)
        return self.plan

    def _do_without(self) -> None:
        """With PyTorch's own kernels from here on."""
        self.kernels, self.loose = None, False
        self.drop()
        del self.watched

    def _cannot_append(self, plan: Plan, registers: Registers) -> None:
        """There was no room to make caches longer, or they are other ones."""
        alike = all(cache.fits(registers[cache.past]) for cache in plan.caches)
        if alike:
            self.watched.outcasts.update(self.watched.appending)  # so they grow outside of graphs
            self.misses = MAX_MISSES - 1
        self._missed(changed=not alike)

    def _staged(
        self, plan: Plan, program: Program, registers: Registers, progress: Any, restrided: list[int]
    ) -> Registers:
        steps = self._instructions(plan, program)
        missed: list[bool] = []  # of each miss: whether something is of another kind, and not just elsewhere
        given_up = False  # what pieces make is not what it should be
        alone = bool(self.watched.written)  # what is written between pieces is copied anew
        for at, stage in enumerate(plan.stages):
            try:
                if not stage.piece or given_up:
                    self._walk(stage, steps[at], registers, progress, restrided)
                    continue
                progress[0] = stage.rows[0].number
                piece = plan.pieces[at] or self._record(plan, at, steps[at], registers)
                if piece is None or not piece.ready(registers):
                    missed.append(self._differs(piece, stage, registers))
                    self._walk(stage, steps[at], registers, progress, restrided)
                    alone = True
                    continue
                before = list(registers) if piece.unchecked else None
                piece.run(registers, alone)
                if before is not None:
                    given_up = not self._checked(plan, at, steps[at], before, registers)
                for register in piece.drops:
                    registers[register] = None
            except Failure as failure:
                done = self._done(plan, at, failure, program)
                self._resume(program, failure, done, progress, restrided, stage.piece)
                return registers
        if missed:
            self._missed(changed=any(missed))
        else:
            self.misses = 0
            self.elsewhere.clear()
            self.different.clear()
            plan.runs += 1
            self.tiers.inexact_runs += self.loose
        return registers

    def _walk(
        self,
        stage: Stage,
        steps: Sequence[Instruction],
        registers: Registers,
        progress: Any,
        restrided: list[int],
    ) -> None:
        """A stage without its graph, which has room in caches that it then needs not. Raises Failure."""
        if stage.piece:
            for one in appended(stage, self.watched):
                registers[one.grown] = None
        walk(steps, registers, progress, restrided)

    def _checked(
        self,
        plan: Plan,
        at: int,
        steps: Sequence[Instruction],
        expected: Registers,
        registers: Registers,
    ) -> bool:
        """Runs PyTorch's own kernels on the same inputs, and the others beside them. If the piece, or one of its
        kernels, is too far from them, their results count, and this program will have no others."""
        piece, stage, kernels = plan.pieces[at], plan.stages[at], self.kernels
        assert piece is not None
        assert kernels is not None
        piece.unchecked -= 1
        each: list[torch.Tensor] = []
        rows = self._table_rows(plan, at)
        steps = compared(steps, stage, self.watched, self._template, kernels, rows, each)
        for register in piece.grown:
            expected[register] = None
        walk(steps, expected, [0], [0])
        if agree([(registers[register], expected[register]) for register in stage.gives], each):
            return True
        registers[:] = expected
        self.tiers.refused += 1
        self._do_without()
        return False

    def _missed(self, changed: bool) -> None:
        """A guard did not hold. changed: what was seen of earlier runs says nothing of later ones."""
        self.misses += 1
        if self.misses < MAX_MISSES:
            return
        self.misses = 0
        if self.plan is not None and not self.plan.runs:
            self.watched.unsteady |= self.different
        self.different.clear()
        self.drop()
        if changed:
            self.watched.forget()
            self.moving.clear()
        for register in () if changed else self.elsewhere:
            self.moving[register] = self.moving.get(register, 0) + 1
        self.elsewhere.clear()

    def _differs(self, piece: Piece | None, stage: Stage, registers: Registers) -> bool:
        """Whether an input of the stage is of another kind than it was. Notes those that only are elsewhere."""
        metas = self.watched.metas
        for register in stage.takes:
            item = registers[register]
            if isinstance(item, torch.Tensor) and not same_meta(item, metas[register]):
                self.different.add(register)
        if self.different:
            return True
        for pin in piece.pins if piece is not None else ():
            if not pin.holds(registers[pin.register]):
                self.elsewhere.add(pin.register)
        return False

    def drop(self) -> None:
        """Forgets the graphs; values in their memory stay as they are."""
        plan, self.plan = self.plan, None
        if plan is not None:
            if plan.runs >= WORTH_RUNS:
                self.recordings = 0
            for storage in plan.outputs:
                self.tiers.values.given(storage)
            self.tiers.nbytes -= plan.nbytes

    # -- recording

    def _record(
        self, plan: Plan, at: int, steps: Sequence[Instruction], registers: Registers
    ) -> Piece | None:
        """The stage as a graph, ready to be replayed on these registers; None if it cannot be one now."""
        stage, watched = plan.stages[at], self.watched
        tensors = {r: registers[r] for r in stage.takes if isinstance(registers[r], torch.Tensor)}
        if any(not same_meta(tensor, watched.metas[r]) for r, tensor in tensors.items()):
            return None
        pinned = {r for r, tensor in tensors.items() if self._stays(r, tensor)}
        copied = [r for r in tensors if r not in pinned]
        earlier = {r for piece in plan.pieces[:at] if piece is not None for r, _, _ in piece.copies}
        new = [r for r in copied if r not in plan.buffers]
        inside = list(registers)
        for register in copied:
            if register in new:
                plan.buffers[register] = _buffer_like(tensors[register])
            inside[register] = plan.buffers[register]

        grown = tuple(one.grown for one in appended(stage, watched))
        gives = [r for r in stage.gives if r not in grown]
        if self.kernels is not None:
            rows = self._table_rows(plan, at)
            steps = loosened(steps, stage, watched, self._template, self.kernels, rows, self.loose)

        def body() -> list[torch.Tensor]:
            given = list(inside)
            walk(steps, given, [0], [0])
            return [given[register] for register in gives]

        try:
            if self.loose or grown:
                plan.try_out(body)
            replay, outputs, nbytes = self.tiers.recorder.record(body, plan.pool)
        except Exception as error:
            if is_fatal(error.cause if isinstance(error, Failure) else error):
                raise
            self._unrecordable(error, stage)
            return None
        nbytes += sum(plan.buffers[register].untyped_storage().nbytes() for register in new)
        plan.nbytes += nbytes
        self.tiers.nbytes += nbytes
        for tensor in outputs:
            storage = tensor.untyped_storage()
            if storage._cdata not in plan.outputs:
                plan.outputs[storage._cdata] = all_bytes(tensor)
                self.tiers.values.lend(storage._cdata)
        pins = [
            Pin(r, tensors[r].data_ptr(), watched.metas[r], weakref.ref(tensors[r])) for r in sorted(pinned)
        ]
        piece = Piece(
            stage.rows[0].number,
            replay,
            tuple(pins),
            tuple((r, watched.metas[r], plan.buffers[r]) for r in copied),
            tuple((r, watched.metas[r], plan.buffers[r]) for r in copied if r not in earlier),
            tuple(zip(gives, outputs, strict=True)),
            grown,
            tuple(r for r in stage.drops if r >= watched.first_result and r not in gives),
            CHECKED_RUNS if self.loose else 0,
        )
        plan.pieces[at] = piece
        return piece

    def _table_rows(self, plan: Plan, at: int) -> torch.Tensor | None:
        """Where a piece finds the caches that it makes longer."""
        if plan.table is None:
            return None
        counts = [len(appended(stage, self.watched)) if stage.piece else 0 for stage in plan.stages[: at + 1]]
        return plan.table.on_device[sum(counts[:-1]) : sum(counts)]

    def _stays(self, register: int, tensor: torch.Tensor) -> bool:
        """Whether the tensor will be in the same place next time."""
        if tensor.untyped_storage()._cdata in self.tiers.values.lent:
            return self.moving.get(register, 0) < 2
        return register not in self.moving and self.watched.stays(register)

    def _unrecordable(self, error: Exception, stage: Stage) -> None:
        """The row that could not be recorded, or else the whole stage, will run eagerly."""
        rows = [error.row] if isinstance(error, Failure) else [row.number for row in stage.rows]
        self.watched.outcasts.update(rows)
        self.misses = MAX_MISSES - 1  # so that the rest is arranged anew at once

    def _instructions(self, plan: Plan, program: Program) -> list[tuple[Instruction, ...]]:
        """The instructions of each stage, dropping what no later one reads. One program may come in two forms."""
        for known, steps in self._steps:
            if known is program:
                return steps
        first = self.watched.first_result
        steps = [
            _dropping(
                [program.instructions[at] for row in stage.rows for at in row.instructions], stage, first
            )
            for stage in plan.stages
        ]
        self._steps = [*self._steps[-1:], (program, steps)]
        return steps

    # -- failures

    def _done(self, plan: Plan, at: int, failure: Failure, program: Program) -> set[int]:
        """Instructions that have run when a row of stage `at` failed."""
        done = {n for stage in plan.stages[:at] for row in stage.rows for n in row.instructions}
        stage = plan.stages[at]
        if not stage.piece or failure.row != stage.rows[0].number:
            for row in stage.rows:
                if failure.row in {program.instructions[n].row for n in row.instructions}:
                    break
                done.update(row.instructions)
        return done

    def _resume(
        self,
        program: Program,
        failure: Failure,
        done: set[int],
        progress: Any,
        restrided: list[int],
        piece: bool = False,
    ) -> None:
        """After a failure, the rows that have not run, in their order, up to the one that fails again.

        If memory was short, without graphs; a piece does not know which of its rows it was. Raises Failure, with the
        registers as the program alone would have left them.
        """
        registers, number, fatal = failure.registers, failure.row, is_fatal(failure.cause)
        short = kind_of(failure.cause) == "memory" and self.tiers.clear_all()
        again = (short or piece) and number not in self.watched.fences and not fatal
        rest = [step for at, step in enumerate(program.instructions) if at not in done]
        if not again:
            rest = [step for step in rest if step.row < number]
        try:
            if not fatal:
                walk(rest, registers, progress, restrided)
        except Failure as later:
            failure, again = later, False
        if not again:
            for row, _, register in program.keep:
                if row >= failure.row:
                    registers[register] = None
            raise failure


def _dropping(steps: list[Instruction], stage: Stage, first_result: int) -> tuple[Instruction, ...]:
    """The steps, each dropping the registers of the stage that it is the last to read or make."""
    left = {register for register in stage.drops if register >= first_result}
    made = []
    for step in reversed(steps):
        drops = tuple(register for register in {*step.reads, step.result} if register in left)
        left.difference_update(drops)
        made.append(replace(step, drops=drops))
    return tuple(reversed(made))


def _buffer_like(tensor: torch.Tensor) -> torch.Tensor:
    buffer = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return buffer.copy_(tensor)


def all_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
