"""A stage's instructions with other kernels than PyTorch's (loose.py) in place of its own, and how they compare."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch

from remora.executor.worker.loose import Kernels, Need, apart
from remora.executor.worker.pieces import Row, Stage
from remora.executor.worker.program import Instruction
from remora.executor.worker.tables import Table
from remora.executor.worker.watching import Attending, Meta, Watched
from remora.ir.graph import Template

LINEAR = "aten.linear.default"


def needs(stages: Collection[Stage], watched: Watched, template: Template) -> set[Need]:
    """What kernels the pieces will ask for, by the shapes that were seen."""
    found: set[Need] = set()
    for row in (row for stage in stages if stage.piece for row in stage.rows):
        one = watched.attending.get(row.number)
        if one is not None:
            tensors = (one.query, one.new_keys, one.new_values)
            found.add(("attend", *(watched.metas[register] for register in tensors)))
        elif template.nodes[row.number].op == LINEAR:
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


def loosened(
    steps: Sequence[Instruction],
    stage: Stage,
    watched: Watched,
    template: Template,
    kernels: Kernels,
    table: Table | None,
) -> list[Instruction]:
    """steps: those of the stage. table: a row for each attention in it, in their order."""
    numbers = [row.number for row in stage.rows if row.number in watched.attending]
    ends = {watched.last[number]: at for at, number in enumerate(numbers)}
    merged = {row for number in numbers for row in watched.rows_of(number)}
    made: list[Instruction] = []
    for step in steps:
        at = ends.get(step.result)
        if at is not None:
            assert table is not None
            made.append(_attending(step, watched.attending[numbers[at]], kernels, table.on_device[at]))
        elif step.row in merged:
            continue
        elif template.nodes[step.row].op == LINEAR and len(step.reads) == 2:
            made.append(replace(step, call=_linear(step.call, kernels)))
        else:
            made.append(step)
    return made


def _attending(step: Instruction, one: Attending, kernels: Kernels, row: torch.Tensor) -> Instruction:
    reads = (one.query, one.new_keys, one.new_values)
    if one.scale is None:
        return replace(step, call=lambda q, k, v: kernels.attend(q, k, v, row, None), read=itemgetter(*reads))
    scaled = (*reads, one.scale)
    return replace(step, call=lambda q, k, v, s: kernels.attend(q, k, v, row, s), read=itemgetter(*scaled))


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


@dataclass(frozen=True)
class Scratch:
    """Caches of nobody, with room for one row. numbers: of a table whose rows are they."""

    memory: list[torch.Tensor]
    numbers: list[int]


def scratch_rows(kinds: list[Meta], device: str) -> Scratch:
    """kinds: of what is appended."""
    memory = [torch.zeros(2, *shape, dtype=dtype, device=device) for dtype, shape, _ in kinds]
    numbers = [n for kept in memory for n in (kept[0].data_ptr(), kept[1].data_ptr(), 1, 1, 0)]
    return Scratch(memory, numbers)


def agree(pairs: Collection[tuple[Any, Any]]) -> bool:
    """Whether what was made is near enough to what was expected; waits for the device. Numbers that are not floating
    follow from those that are."""
    found = []
    for made, expected in pairs:
        if not isinstance(expected, torch.Tensor) or not expected.is_floating_point():
            continue
        if made.shape != expected.shape or made.dtype is not expected.dtype:
            return False
        found.append(apart(made, expected))
    return not found or bool((torch.stack(found) <= 1).all())
