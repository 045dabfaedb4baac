"""What a program's first runs show of its rows: which do the same each time, and what they read where."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch

from remora.executor.worker.append import Cat
from remora.executor.worker.attends import appends, attends
from remora.executor.worker.capturable import judge
from remora.executor.worker.failure import kind_of
from remora.executor.worker.graphs import Recorder
from remora.executor.worker.loose import appendable, fits
from remora.executor.worker.pieces import Row, Stage, registers_written
from remora.executor.worker.program import Failure, Program, Registers, walk
from remora.executor.worker.readers import readers
from remora.ir.graph import Template
from remora.wire.binding import Name

Meta = tuple[Any, ...]
"""Of a tensor: dtype, shape, strides as `_strides` gives them. Of a number: type, value, sign."""

MAX_COPY_NBYTES = 4 << 20  # an input of a graph that is copied at each run
HEAVY_NBYTES = 1 << 20  # kernels that write so much, on average, take longer than it takes to launch them
SAMPLE = 12  # kernels, by which that is judged
_GRANULE = 16  # kernels look at addresses by as many bytes


def meta_of(item: Any) -> Meta:
    if isinstance(item, torch.Tensor):
        shape = tuple(item.shape)
        return (item.dtype, shape, _strides(shape, item.stride()))
    sign = math.copysign(1, item) if isinstance(item, float) else 0
    return (type(item), item, sign)


def same_meta(item: Any, meta: Meta) -> bool:
    """meta_of(item) == meta. A number that is not equal to itself never is."""
    if isinstance(item, torch.Tensor):
        if item.dtype is not meta[0] or item.shape != meta[1]:
            return False
        stride = item.stride()
        return bool(stride == meta[2] or _strides(meta[1], stride) == meta[2])
    return meta_of(item) == meta


def _strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, where they matter: a dimension of one element has any."""
    if 1 not in shape:
        return strides
    return tuple(0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True))


@dataclass(frozen=True, slots=True)
class Appending:
    """Registers of a row that makes a cache longer: what it was, what is new, along which dimension, what it is then.
    grow: the call that does it."""

    past: int
    new: int
    dim: int
    grown: int
    grow: Cat


@dataclass(frozen=True, slots=True)
class Attending:
    """Registers of an attention, and the two rows that grow what it reads; all three count as one row."""

    query: int
    keys: Appending
    values: Appending
    scale: int | None


class Watched:
    """The rows of one program over its first runs.

    metas: register: what it was each time. varying: registers that were not the same. moved: those that were in
    another place. outcasts: rows that no graph can hold. fences: rows that keep their place. appending: by its row,
    those that make caches longer and that a graph can hold; more than one are attention, with what it reads
    (`attending`). Empty unless there are kernels for it: `appends`; for attention: `loose`.
    """

    def __init__(
        self,
        template: Template,
        program: Program,
        recorder: Recorder,
        appends: bool = False,
        loose: bool = False,
    ) -> None:
        self.recorder = recorder
        self.n_slots = template.n_slots
        self.n_instructions = len(program.instructions)
        self.first_constant = template.n_slots + len(template.holes)
        self.first_result = self.first_constant + len(program.constants)
        self.kept = frozenset(register for _, _, register in program.keep)
        self.outcasts: set[int] = set()
        self.fences: set[int] = set()
        self.flexible: set[int] = set()  # rows for which alignment does not matter
        self.launching: set[int] = set()
        self.groups: dict[int, list[int]] = {}
        for at, step in enumerate(program.instructions):
            self.groups.setdefault(step.row, []).append(at)
        kept_outputs = tuple((row, out) for row, out, _ in program.keep)
        growing = readers(template, kept_outputs).growing
        self.appending: dict[int, tuple[Appending, ...]] = {}
        self.attending: dict[int, Attending] = {}
        if appends:
            self._find_appending(template, program, growing, loose)
        self.grown = frozenset(one.grown for found in self.appending.values() for one in found)
        self.reads = {row: self._outside(program, row) for row in self.groups}
        self.makes = {
            row: tuple(program.instructions[at].result for at in places)
            for row, places in self.groups.items()
        }
        self.arguments = {row: program.instructions[places[-1]].reads for row, places in self.groups.items()}
        self.last = {row: program.instructions[places[-1]].result for row, places in self.groups.items()}
        self._rows_of = {
            row: frozenset(program.instructions[at].row for at in self.groups[row]) for row in self.appending
        }
        self.written: dict[int, list[int]] = {}
        self.outcasts |= growing - self.appending.keys()  # what they do depends on who else reads a buffer
        for row in self.groups:
            self._judge(row, template, program)
        self.unsteady: set[int] = set()  # registers that looked the same, and were not
        self.runs = 0
        self.metas: dict[int, Meta] = {}
        self.forget()

    def forget(self) -> None:
        self.runs = 0
        self.metas = {}
        self.varying: set[int] = set()
        self.moved: set[int] = set()
        self.sources: dict[int, int] = {}  # register: the one whose memory it shares
        self.along: dict[
            int, int
        ] = {}  # register that a cache becomes: the dimension that grows, counted from 0
        self.heavy = False  # graphs would save little of the time, and hold much memory
        self.fleeting: set[int] = set()  # slots that are bound to another value each time
        self._names: list[Name] = []
        self._addresses: dict[int, int] = {}
        self._unaligned: set[int] = set()
        self._overlapping: set[int] = set()

    def _outside(self, program: Program, row: int) -> frozenset[int]:
        steps = [program.instructions[at] for at in self.groups[row]]
        read = frozenset(register for step in steps for register in step.reads) - {s.result for s in steps}
        return read - {one.past for one in self.appending.get(row, ())}

    def _find_appending(
        self, template: Template, program: Program, growing: Collection[int], loose: bool
    ) -> None:
        fences = {row for row, node in enumerate(template.nodes) if judge(node).fence}
        for row in sorted(appends(template, growing, fences)):
            pair, cat = (program.instructions[self.groups[row][at]] for at in (0, -1))
            if isinstance(cat.call, Cat):
                self.appending[row] = (Appending(*pair.reads, cat.reads[1], cat.result, cat.call),)
        if not loose:
            return
        for one in attends(template, self.appending.keys(), fences).values():
            attention = program.instructions[self.groups[one.row][-1]]
            names = [name for name, _ in template.nodes[one.row].kwargs]
            scale = attention.reads[3 + names.index("scale")] if "scale" in names else None
            (keys,), (values,) = self.appending.pop(one.keys), self.appending.pop(one.values)
            self.appending[one.row] = (keys, values)
            self.attending[one.row] = Attending(attention.reads[0], keys, values, scale)
            self.groups[one.row] = [
                *self.groups.pop(one.keys),
                *self.groups.pop(one.values),
                *self.groups[one.row],
            ]

    def _judge_appending(self, row: int, registers: Registers) -> None:
        """Before a run: whether its shapes are those that a graph can serve."""
        for one in self.appending[row]:
            new, dim = registers[one.new], registers[one.dim]
            if not appendable(new, registers[one.past], dim):
                self.outcasts.add(row)
                return
            self.along[one.grown] = dim + new.dim() if dim < 0 else dim
        attending = self.attending.get(row)
        if attending is not None:
            keys, values = attending.keys, attending.values
            tensors = [registers[r] for r in (attending.query, keys.new, values.new, keys.past, values.past)]
            if any(self.along[one.grown] != 2 for one in (keys, values)) or not fits(*tensors):
                self.outcasts.add(row)

    def _judge(self, row: int, template: Template, program: Program) -> None:
        if row in self.appending:
            self.launching.add(row)
            return
        judged = judge(template.nodes[row])
        if judged.fence:
            self.fences.add(row)
        if not judged.capturable:
            self.outcasts.add(row)
        if judged.any_alignment:
            self.flexible.add(row)
        if judged.launches:
            self.launching.add(row)
        if judged.written:
            steps = [program.instructions[at] for at in self.groups[row]]
            calls = [step for step in steps if not isinstance(step.call, itemgetter)]
            lists = {step.result: step.reads for step in calls[:-1]}
            written = [calls[-1].reads[place] for place in judged.written if place < len(calls[-1].reads)]
            self.written[row] = [r for register in written for r in lists.get(register, (register,))]

    def rows_of(self, row: int) -> frozenset[int]:
        """The rows of the template that count as this one."""
        return self._rows_of.get(row, frozenset((row,)))

    def bind(self, names: list[Name]) -> None:
        """The values that the slots of the next run are."""
        if self._names:
            pairs = zip(self._names, names, strict=True)
            self.fleeting.update(slot for slot, (was, name) in enumerate(pairs) if was != name)
        self._names = names

    def written_slots(self) -> Collection[int]:
        """Slots whose memory the program writes, as far as is known; before a run has shown it, all."""
        if not self.written:
            return ()
        if not self.runs:
            return range(self.n_slots)
        return registers_written(self.rows(), self.written, self.n_slots)

    def watch(self, program: Program, registers: Registers, progress: Any, restrided: list[int]) -> None:
        """Runs a program. Raises Failure."""
        for register in range(self.first_constant):
            self._see(register, registers[register])
        made_nbytes = n_launched = 0
        for row, places in self.groups.items():
            if n_launched == SAMPLE and made_nbytes > HEAVY_NBYTES * SAMPLE:
                self.heavy = True
            if self.heavy:
                walk([program.instructions[at] for at in places], registers, progress, restrided)
                continue
            steps = [program.instructions[at] for at in places]
            read = [(r, registers[r]) for r in self.reads[row] if isinstance(registers[r], torch.Tensor)]
            if row in self.appending:
                self._judge_appending(row, registers)
                walk(steps, registers, progress, restrided)
            elif self.runs or row in self.outcasts or row in self.fences:
                walk(steps, registers, progress, restrided)
            else:
                self._strictly(row, steps, registers, progress, restrided)
            tensors = [tensor for _, tensor in read]
            storages = {tensor.untyped_storage()._cdata: r for r, tensor in read}
            for step in steps:
                made = registers[step.result]
                if isinstance(made, torch.Tensor):
                    tensors.append(made)
                    self._see(step.result, made)
                    if row in self.launching:
                        made_nbytes, n_launched = made_nbytes + made.nbytes, n_launched + 1
                    source = storages.get(made.untyped_storage()._cdata)
                    if source is not None:
                        self.sources[step.result] = source
            if any(not self._ours(tensor) for tensor in tensors):
                self.outcasts.add(row)
        self.runs += 1

    def _strictly(
        self, row: int, steps: Any, registers: Registers, progress: Any, restrided: list[int]
    ) -> None:
        """A row that may be in a graph, if it does not wait for the device."""
        before = {register: registers[register] for step in steps for register in step.reads}
        try:
            self.recorder.strict(True)
            try:
                walk(steps, registers, progress, restrided)
            finally:
                self.recorder.strict(False)
        except Failure as failure:
            if kind_of(failure.cause) == "memory":
                raise
            self.outcasts.add(row)
            for register, item in before.items():
                registers[register] = item
            walk(steps, registers, progress, restrided)

    def _ours(self, tensor: torch.Tensor) -> bool:
        plain = not (tensor.is_conj() or tensor.is_neg() or tensor.dtype.is_complex)
        return plain and tensor.device.type == self.recorder.kind and tensor.numel() > 0

    def _see(self, register: int, item: Any) -> None:
        tensor = isinstance(item, torch.Tensor)
        if not tensor and not isinstance(item, (int, float)):
            return
        if register not in self.metas:
            self.metas[register] = meta_of(item)
        elif not same_meta(item, self.metas[register]):
            self.varying.add(register)
        if not tensor:
            return
        address = item.data_ptr()
        if self._addresses.setdefault(register, address) != address:
            self.moved.add(register)
        if address % _GRANULE:
            self._unaligned.add(register)
        if torch._debug_has_internal_overlap(item) != 0 or item.nbytes > MAX_COPY_NBYTES:
            self._overlapping.add(register)

    def rows(self) -> list[Row]:
        found, changing = [], self.varying | self.unsteady | self.grown
        for row, places in self.groups.items():
            touched = {*self.reads[row], *self.makes[row]}
            touched.difference_update(one.grown for one in self.appending.get(row, ()))
            same = row not in self.outcasts and row not in self.fences and not touched & changing
            views = {made: self.sources[made] for made in self.makes[row] if made in self.sources}
            found.append(
                Row(
                    row,
                    tuple(places),
                    self.reads[row],
                    self.makes[row],
                    same,
                    row in self.fences,
                    views,
                    row in self.launching,
                )
            )
        return found

    def stays(self, register: int) -> bool:
        """Whether it is, or lies in, what came from outside and has always been in the same place."""
        root = register
        while root in self.sources:
            root = self.sources[root]
        return (
            root < self.n_slots
            and root not in self.fleeting
            and root not in self.moved
            and register not in self.moved
        )

    def uncopyable(self, moved: Collection[int]) -> set[int]:
        """Registers that are not always in the same place, and of which a copy would not do."""
        readers = self._readers()
        return {
            register
            for register in self.metas
            if (register in moved or not self.stays(register))
            and (
                register in self._overlapping
                or (register in self._unaligned and not self._flexible(register, readers))
            )
        }

    def _readers(self) -> dict[int, list[int]]:
        readers: dict[int, list[int]] = {}
        for row, registers in self.reads.items():
            for register in registers:
                readers.setdefault(register, []).append(row)
        return readers

    def _flexible(self, register: int, readers: dict[int, list[int]]) -> bool:
        """Whether no row that reads it, or a view of it, looks at its address."""
        for row in readers.get(register, ()):
            if row not in self.launching:
                views = [made for made in self.makes[row] if self.sources.get(made) == register]
                if not all(self._flexible(made, readers) for made in views):
                    return False
            elif row not in self.flexible:
                return False
        return True

    def fixed(self, stages: Collection[Stage]) -> tuple[tuple[int, Meta], ...]:
        """The numbers that pieces take, with what they must be."""
        holes = range(self.n_slots, self.first_constant)
        taken = {register for stage in stages if stage.piece for register in stage.takes}
        return tuple((register, self.metas[register]) for register in sorted(taken & set(holes)))
