"""A stage's instructions with the kernels of loose.py in place of PyTorch's, and how results compare."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import torch

from remora.executor.worker.loose import Kernels, Need, apart
from remora.executor.worker.pieces import Row, Stage
from remora.executor.worker.program import Instruction, Registers
from remora.executor.worker.watching import Appending, Attending, Meta, Watched
from remora.ir.graph import Template

LINEAR = "aten.linear.default"


def needs(stages: Collection[Stage], watched: Watched, template: Template, loose: bool) -> set[Need]:
    """What kernels the pieces will ask for, by the shapes that were seen. loose: others too than those that append."""
    found: set[Need] = set()
    for row in (row for stage in stages if stage.piece for row in stage.rows):
        one = watched.attending.get(row.number)
        if one is not None:
            tensors = (one.query, one.keys.new, one.values.new)
            found.add(("attend", *(watched.metas[register] for register in tensors)))
        elif row.number in watched.appending:
            found.update(
                ("append", watched.metas[one.new], watched.along[one.grown])
                for one in watched.appending[row.number]
            )
        elif loose and template.nodes[row.number].op == LINEAR:
            x, weight = (watched.metas[register] for register in row_reads(row, watched)[:2])
            if _one_row(x[1], weight):
                k = weight[1][1]
                found.add(
                    ("linear", (x[0], (1, k), (k, 1)), (x[0], (1, k), (k, 1)))
                )  # the same for all heights
    return found


def row_reads(row: Row, watched: Watched) -> tuple[int, ...]:
    """Registers that the last instruction of a row reads, in its order."""
    return watched.arguments[row.number]


def appended(stage: Stage, watched: Watched) -> list[Appending]:
    """The caches that the stage makes longer, in the order of their rows in the table."""
    return [one for row in stage.rows for one in watched.appending.get(row.number, ())]


def loosened(
    steps: Sequence[Instruction],
    stage: Stage,
    watched: Watched,
    template: Template,
    kernels: Kernels,
    table: torch.Tensor | None,
    loose: bool,
) -> list[Instruction]:
    """steps: those of the stage. table: a row for each of `appended`. loose: as in `needs`."""
    numbers = [row.number for row in stage.rows if row.number in watched.appending]
    ends = {watched.last[number]: number for number in numbers}
    merged = {row for number in numbers for row in watched.rows_of(number)}
    made: list[Instruction] = []
    at = 0
    for step in steps:
        number = ends.get(step.result)
        if number is not None:
            assert table is not None
            rows = table[at : at + len(watched.appending[number])]
            at += len(rows)
            if number in watched.attending:
                made.append(_attending(step, watched.attending[number], kernels, rows))
            else:
                (one,) = watched.appending[number]
                made.append(_append(step, one, kernels, rows[0], watched.along[one.grown]))
        elif step.row in merged:
            continue
        elif loose and template.nodes[step.row].op == LINEAR and len(step.reads) == 2:
            made.append(replace(step, call=_linear(step.call, kernels)))
        else:
            made.append(step)
    return made


def _append(step: Instruction, one: Appending, kernels: Kernels, row: torch.Tensor, dim: int) -> Instruction:
    """What it makes is known without it."""
    read: Callable[[Registers], tuple[Any, ...]] = lambda registers: (registers[one.new],)  # noqa: E731
    return replace(step, call=lambda new: kernels.append(new, row, dim), read=read, layout=None)


def _attending(step: Instruction, one: Attending, kernels: Kernels, rows: torch.Tensor) -> Instruction:
    reads = (one.query, one.keys.new, one.values.new)
    if one.scale is None:
        return replace(
            step, call=lambda q, k, v: kernels.attend(q, k, v, rows, None), read=itemgetter(*reads)
        )
    scaled = (*reads, one.scale)
    return replace(step, call=lambda q, k, v, s: kernels.attend(q, k, v, rows, s), read=itemgetter(*scaled))


def _linear(plain: Any, kernels: Kernels) -> Any:
    def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if _one_row(x.shape, (weight.dtype, tuple(weight.shape), weight.stride())) and x.is_contiguous():
            return kernels.linear(x, weight)
        return plain(x, weight)  # type: ignore[no-any-return]

    return linear


def _one_row(x: Sequence[int], weight: Meta) -> bool:
    dtype, shape, stride = weight
    if len(shape) != 2 or dtype not in (torch.bfloat16, torch.float16):
        return False
    n, k = shape
    rows = 1
    for size in x[:-1]:
        rows *= size
    return bool(rows == 1 and x[-1] == k and n and k >= 16 and tuple(stride) == (k, 1))


def compared(
    steps: Sequence[Instruction],
    stage: Stage,
    watched: Watched,
    template: Template,
    kernels: Kernels,
    table: torch.Tensor | None,
    found: list[torch.Tensor],
) -> list[Instruction]:
    """The steps as they are, which also run what `loosened` has in their place on the same inputs. found: how far each
    of those is from PyTorch's, as `apart`; a piece may be a whole model, in which small differences add up."""
    others = {step.result: step for step in loosened(steps, stage, watched, template, kernels, table, True)}
    attending = {watched.last[row.number] for row in stage.rows if row.number in watched.attending}
    made = []
    for step in steps:
        other = others.get(step.result)
        linear = template.nodes[step.row].op == LINEAR and len(step.reads) == 2
        if other is not None and (linear or step.result in attending):
            step = _both(step, other, found)
        made.append(replace(step, drops=()))  # attention of both kinds reads what is new
    return made


def _both(step: Instruction, other: Instruction, found: list[torch.Tensor]) -> Instruction:
    def call(items: tuple[Any, ...], others: tuple[Any, ...]) -> Any:
        made = step.call(*items)
        found.append(apart(other.call(*others), made))
        return made

    read: Callable[[Registers], tuple[Any, ...]] = lambda all_: (step.read(all_), other.read(all_))  # noqa: E731
    return replace(step, call=call, read=read)


def agree(pairs: Collection[tuple[Any, Any]], each: Sequence[torch.Tensor]) -> bool:
    """Whether what was made is near enough to what was expected; waits for the device. Numbers that are not floating
    follow from those that are. each: how far single kernels were; so many of them may together be further away, by
    the root of their number."""
    found = []
    most = max(1, len(each)) ** 0.5
    for made, expected in pairs:
        if not isinstance(expected, torch.Tensor) or not expected.is_floating_point():
            continue
        if made.shape != expected.shape or made.dtype is not expected.dtype:
            return False
        found.append(apart(made, expected) / most)
    found += each
    return not found or bool((torch.stack(found) <= 1).all())
