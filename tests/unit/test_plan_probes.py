"""Probes of every size are programs that PyTorch takes, with the shapes that the planner counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from remora.ir.annotated import Row
from remora.ir.node import Arg, Const, Hole, Items, Ref, Slot, Symbol
from remora.ops.cost import Kind, graph_work
from remora.ops.dtypes import BY_NAME, NAMES
from remora.ops.permission import refusal
from remora.ops.schema import resolve
from remora.plan import probe_suite
from remora.plan.probes import Sets

SUITES = [probe_suite.suite(probe_suite.CPU), probe_suite.suite(probe_suite.GPU)]


def run_on_meta(rows: list[Row], slots: list[torch.Tensor], holes: list[int | float]) -> list[Any]:
    numbers, made = iter(holes), []

    def value(arg: Arg) -> Any:
        match arg:
            case Ref(row, out):
                return made[row] if out == 0 else made[row][out]
            case Slot(index):
                return slots[index]
            case Hole():
                return next(numbers)
            case Const(constant):
                return constant
            case Symbol("device", _):
                return torch.device("meta")
            case Symbol(_, name):
                return BY_NAME[name]
            case Items(items):
                return [value(item) for item in items]

    for row in rows:
        op = resolve(row.node.op)
        assert refusal(op) is None
        result = op(*map(value, row.node.args), **{name: value(arg) for name, arg in row.node.kwargs})
        made.append(result[0] if isinstance(result, tuple) else result)
        (facts,) = row.outs
        assert facts is not None
        assert (NAMES[made[-1].dtype], tuple(made[-1].shape)) == (facts.dtype, facts.shape), row.node.op
    return made


@pytest.mark.parametrize("bench", SUITES)
def test_every_probe_is_a_program_with_the_shapes_that_it_says(bench):
    inputs = run_on_meta(bench.made, [], bench.holes)
    for probe in bench.probes:
        slots = [inputs[number] for number in probe.inputs]
        run_on_meta(list(probe.graph.rows), slots, list(probe.graph.holes))


@pytest.mark.parametrize("bench", SUITES)
def test_a_probe_repeats_one_kind_of_work(bench):
    """What a probe sets is its time by its rows, so they must be alike."""
    for probe in bench.probes:
        works = graph_work(probe.graph)
        if probe.sets not in (Sets.CALL, Sets.VIEW, Sets.NOTHING):
            assert {(work.kind, work.flops, work.nbytes) for work in works} == {
                (probe.kind, works[0].flops, works[0].nbytes)
            }, probe.name
        assert {work.kind is Kind.FREE for work in works} == {probe.sets is Sets.VIEW}
