"""From an op call to a graph node. Only for rows that were never seen before."""

from __future__ import annotations

from typing import Any

import torch

from remora.capture.recorder import Recorder
from remora.capture.value import OUT_BITS, OUT_MASK
from remora.device.tensor import RemoraTensor
from remora.ir.node import Arg, Const, Hole, Items, Node, Ref, Slot, Symbol, device_symbol
from remora.ops.schema import op_name


def node_of(
    func: Any, args: Any, kwargs: Any, recorder: Recorder, layouts: tuple[tuple[int, ...], ...]
) -> Node:
    """The row's node; every tensor has its slot already."""

    def arg(item: Any) -> Arg:
        if isinstance(item, RemoraTensor):
            value = item._value
            if value.segment == recorder.segment:
                return Ref(value.code >> OUT_BITS, value.code & OUT_MASK)
            return Slot(recorder.slots[value])
        if isinstance(item, (bool, str)) or item is None:
            return Const(item)
        if isinstance(item, (int, float)):
            return Hole("int" if isinstance(item, int) else "float")
        if isinstance(item, (list, tuple)):
            return Items(tuple(arg(x) for x in item))
        if isinstance(item, torch.device):
            return device_symbol(item.index or 0)
        if isinstance(item, torch._C.Generator):
            return Hole("int")  # its number
        if isinstance(item, complex):
            return Symbol("complex", repr(item))
        return symbol_of(item)

    return Node(
        op_name(func),
        tuple(arg(item) for item in args),
        tuple((name, arg(item)) for name, item in kwargs.items()) if kwargs else (),
        layouts,
    )


_KINDS = {torch.dtype: "dtype", torch.layout: "layout", torch.memory_format: "memory_format"}


def symbol_of(item: Any) -> Symbol:
    return Symbol(_KINDS[type(item)], str(item).removeprefix("torch."))
