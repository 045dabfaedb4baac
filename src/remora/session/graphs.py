"""From a captured segment to the planner's graph: shapes, shared memory and provenance of each row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from remora.capture.recorder import CapturedTemplate, Segment, Step
from remora.capture.value import Value
from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.graph import Template
from remora.ir.node import Arg, Const, Hole, Items, Node, Ref, Slot
from remora.ops.dtypes import NAMES
from remora.ops.schema import OpTraits, resolve, traits


def graph_of(
    segment: Segment, slots: Sequence[Outside], wants: frozenset[tuple[int, int]] = frozenset()
) -> Graph:
    """The graph of a segment that was just cut. `slots`: what is known of each value that it reads."""
    rows = tuple(
        _row(segment.captured, number, step, metas)
        for number, (step, metas) in enumerate(zip(segment.step.path(), metas_of(segment), strict=True))
    )
    keep = frozenset(zip(segment.keep[::2], segment.keep[1::2], strict=True))
    template = segment.captured.template.id.hex()
    return Graph(rows, tuple(slots), tuple(segment.holes), keep, wants, template=template)


def module_values(captured: CapturedTemplate) -> Iterator[tuple[str, Value]]:
    """Parameters and buffers of the models that ran a template's rows, each with the path of its module.

    Rows that were seen before keep the path that they had first, though another of equal layers may run them.
    """
    models = {id(model): model for where in captured.where if where is not None and (model := where.model)}
    for model in models.values():
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            value = getattr(tensor, "_value", None)
            if value is not None:
                yield ".".join([type(model).__name__, *name.split(".")[:-1]]), value


@lru_cache(maxsize=4096)
def size_of(meta: Any) -> tuple[Facts, int]:
    """Facts of a value's metadata, and their bytes."""
    facts = facts_of(meta)
    return facts, facts.nbytes


def facts_of(meta: Any) -> Facts:
    """Facts of a value's metadata (device/meta.py: TensorMeta)."""
    return Facts(NAMES[meta.dtype], tuple(meta.shape), meta.dtype.itemsize)


def facts_at(segment: Segment, row: int, out: int) -> Facts | None:
    """What an output looks like in this use of the template; None if only the data tells."""
    meta = _meta_at(segment, segment.step.path(), row, out)
    return None if meta is None else facts_of(meta)


def metas_of(segment: Segment) -> list[list[Any]]:
    """Metadata of each row's outputs in this use of the template; None where only the data tells."""
    steps = segment.step.path()
    return [
        [_meta_at(segment, steps, row, out) for out in range(len(step.outcome.outs))]
        for row, step in enumerate(steps)
    ]


def _meta_at(segment: Segment, steps: Sequence[Step], row: int, out: int) -> Any:
    step = steps[row]
    meta = step.outcome.outs[out]
    appended = next((each for each in segment.appended if each.covers(row, steps)), None)
    if meta is None:
        return None
    if not isinstance(meta, int):
        return meta if appended is None else appended.meta_at(row, out)
    if appended is None:
        return (step.metas or [])[meta]
    assert step.node is not None
    arg = [arg for arg in step.node.inputs() if isinstance(arg, Ref | Slot)][meta]
    if isinstance(arg, Slot):
        return segment.slots[arg.index].meta
    return _meta_at(segment, steps, arg.row, arg.out)


def random_rows(graph: Graph) -> tuple[int, ...]:
    """Rows that draw random numbers."""
    holes = iter(graph.holes)
    found = []
    for number, row in enumerate(graph.rows):
        values = [_number(arg, holes) for arg in row.node.args]
        for _, arg in row.node.kwargs:
            _number(arg, holes)
        if _traits(row.node).draws(values):
            found.append(number)
    return tuple(found)


def dropout_holes(template: Template) -> tuple[int, ...]:
    """Holes on whose value it depends whether a row draws random numbers."""
    found, hole = [], 0
    for node in template.nodes:
        place = _traits(node).dropout_arg if _traits(node).random else None
        for at, arg in enumerate(node.args):
            if at == place and isinstance(arg, Hole):
                found.append(hole)
            hole += _n_holes(arg)
        hole += sum(_n_holes(arg) for _, arg in node.kwargs)
    return tuple(found)


def _number(arg: Arg, holes: Iterator[int | float]) -> Any:
    """What an argument's value is if it is a number or a constant; takes its holes from the rest."""
    match arg:
        case Hole():
            return next(holes)
        case Const(value):
            return value
        case Items(items):
            for item in items:
                _number(item, holes)
    return arg


def _n_holes(arg: Arg) -> int:
    return sum(map(_n_holes, arg.items)) if isinstance(arg, Items) else isinstance(arg, Hole)


def _row(captured: CapturedTemplate, number: int, step: Step, metas: Sequence[Any]) -> Row:
    node, outcome = step.node, step.outcome
    assert node is not None
    known, where = _traits(node), captured.where[number]
    outs = tuple(None if meta is None else facts_of(meta) for meta in metas)
    shares: list[int | None] = []
    for out, meta in enumerate(outcome.outs):
        if isinstance(meta, int):
            shares.append(meta)
        else:
            shares.append(_viewed(node, known, out) if outcome.is_view else None)
    module, source = ("", "") if where is None else (where.module, f"{where.file}:{where.line}")
    writes = (
        () if outcome.is_view else tuple(outcome.stale)
    )  # of a view that no shadow can follow, all are stale
    return Row(node, outs, tuple(shares), writes, module, source)


def _traits(node: Node) -> OpTraits:
    return traits(resolve(node.op))


def _viewed(node: Node, known: OpTraits, out: int) -> int:
    """The tensor input whose memory an output of a view lies in."""
    places = [place for returned, place in known.views if returned == out] or [
        place for _, place in known.views[:1]
    ]
    place = places[0] if places else 0  # of the first argument, if the schema does not say
    if isinstance(place, str):
        before = [*node.args, *(arg for name, arg in node.kwargs if name != place)]
    else:
        before = list(node.args[:place])
    return sum(map(_n_tensors, before))


def _n_tensors(arg: Arg) -> int:
    if isinstance(arg, Items):
        return sum(map(_n_tensors, arg.items))
    return isinstance(arg, Ref | Slot)
