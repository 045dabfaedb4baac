"""A segment as an annotated graph: shapes by running its rows on PyTorch's meta device."""

from __future__ import annotations

from typing import Any

import torch

from remora.capture.recorder import Segment
from remora.device.meta import TensorMeta
from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.graph import Template
from remora.ir.node import FREE, Arg, Const, Hole, Items, Node, Ref, Slot, Symbol
from remora.ops.dtypes import BY_NAME, NAMES
from remora.ops.schema import resolve, traits


def graph_of(segment: Segment, metas: list[TensorMeta]) -> Graph:
    """The graph of one use of a template. metas: of the segment's slots, as they were when it was sent."""
    replay = _Replay(segment.captured.template, [meta.fresh_example() for meta in metas], segment.holes)
    with torch.no_grad():
        rows = tuple(replay.row(node) for node in segment.captured.template.nodes)
    slots = tuple(
        Outside(_facts(example), number, value.uploaded)
        for number, (example, value) in enumerate(zip(replay.slots, segment.slots, strict=True))
    )
    pairs = zip(segment.keep[::2], segment.keep[1::2], strict=True)
    return Graph(rows, slots, tuple(segment.holes), frozenset(pairs))


class _Replay:
    def __init__(self, template: Template, slots: list[torch.Tensor], holes: list[int | float]) -> None:
        self.slots, self.holes = slots, iter(holes)
        self.made: list[list[Any]] = []

    def row(self, node: Node) -> Row:
        op = resolve(node.op)
        args = [self._value(arg) for arg in node.args]
        kwargs = {name: self._value(arg) for name, arg in node.kwargs}
        for argument in op._schema.arguments:
            if "Generator" in str(argument.real_type):
                kwargs.pop(argument.name, None)
        result = op(*args, **kwargs)
        outs = list(result) if isinstance(result, (list, tuple)) else [] if result is None else [result]
        known = traits(op)
        if not known.mutates and not known.views:
            outs = [_laid_out(out, node, at) for at, out in enumerate(outs)]
        self.made.append(outs)
        inputs = [item for item in _flat([*args, *kwargs.values()]) if isinstance(item, torch.Tensor)]
        homes = [item.untyped_storage()._cdata for item in inputs]
        places = [args[at] if isinstance(at, int) else kwargs.get(at) for at in known.writes(args)]
        written = {id(item) for item in _flat(places)}
        return Row(
            node,
            tuple(_facts(out) if isinstance(out, torch.Tensor) else None for out in outs),
            tuple(_shared(out, homes) for out in outs),
            tuple(at for at, item in enumerate(inputs) if id(item) in written),
        )

    def _value(self, arg: Arg) -> Any:
        match arg:
            case Ref(row, out):
                return self.made[row][out]
            case Slot(index):
                return self.slots[index]
            case Hole():
                return next(self.holes)
            case Const(value):
                return value
            case Symbol(kind, name):
                return self._symbol(kind, name)
            case Items(items):
                return [self._value(item) for item in items]

    def _symbol(self, kind: str, name: str) -> Any:
        if kind == "device":
            return torch.device("meta")
        if kind == "dtype":
            return BY_NAME[name]
        return complex(name) if kind == "complex" else getattr(torch, name)


def _flat(items: list[Any]) -> list[Any]:
    found: list[Any] = []
    for item in items:
        found += _flat(item) if isinstance(item, (list, tuple)) else [item]
    return found


def _shared(out: Any, homes: list[int]) -> int | None:
    if not isinstance(out, torch.Tensor):
        return None
    home = out.untyped_storage()._cdata
    return homes.index(home) if home in homes else None


def _laid_out(out: Any, node: Node, at: int) -> Any:
    """A fresh output with the strides that the executor gives it."""
    layout = node.layouts[at] if at < len(node.layouts) else ()
    if not isinstance(out, torch.Tensor) or layout == FREE:
        return out
    if not layout:
        return out.contiguous()
    inverse = [layout.index(dim) for dim in range(len(layout))]
    return out.permute(layout).contiguous().permute(inverse)


def _facts(tensor: torch.Tensor) -> Facts:
    return Facts(NAMES[tensor.dtype], tuple(tensor.shape), tensor.element_size())
