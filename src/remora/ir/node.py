"""Nodes of a graph. Immutable; a pass returns new ones.

The structs are also the wire form: their canonical msgpack encoding names a template.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Index = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
OpName = Annotated[str, msgspec.Meta(max_length=200, pattern=r"(?a)^[A-Za-z_]\w*(\.\w+){2}\Z")]
Keyword = Annotated[str, msgspec.Meta(max_length=64, pattern=r"(?a)^[A-Za-z_]\w*\Z")]
Word = Annotated[str, msgspec.Meta(max_length=64)]


class Ref(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Output `out` of row `row` of the same graph."""

    row: Index
    out: Index = 0


class Slot(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A value from outside the graph, by position; the binding gives its name."""

    index: Index


class Hole(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A number that differs between runs; the binding gives its value. Holes count in row order."""

    kind: Annotated[str, msgspec.Meta(pattern=r"^(int|float)\Z")]


class Const(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A constant that chooses behaviour and so belongs to the template."""

    value: bool | Word | None


class Symbol(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A named torch constant: a dtype, layout, memory_format, device, or the text of a complex number.

    A device symbol is `executor`, the device that runs the graph. In a graph over several devices it is the first
    of them, and `executor:1` the second; a part for one executor names only itself (plan/parts.py).
    """

    kind: Annotated[str, msgspec.Meta(pattern=r"^(dtype|layout|memory_format|device|complex)\Z")]
    name: Word


class Items(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A list argument."""

    items: Annotated[tuple[Arg, ...], msgspec.Meta(max_length=1 << 14)]


Arg = Ref | Slot | Hole | Const | Symbol | Items

Layout = Annotated[tuple[Index, ...], msgspec.Meta(max_length=64)]
FREE: tuple[int, ...] = (1,)  # no order of dimensions: the output stays as the kernel lays it out


class Node(msgspec.Struct, frozen=True, array_like=True):
    """One op of a graph.

    op: `aten.name.overload`. args, kwargs: as in the op's schema.
    layouts: for each fresh output that the program sees as neither contiguous nor a view, the order of
    its dimensions from the slowest to the fastest; `()` for an output that is contiguous; FREE for one whose
    strides the client asks for, or knows to be the kernel's. Empty when all are contiguous.
    """

    op: OpName
    args: Annotated[tuple[Arg, ...], msgspec.Meta(max_length=256)] = ()
    kwargs: Annotated[tuple[tuple[Keyword, Arg], ...], msgspec.Meta(max_length=64)] = ()
    layouts: Annotated[tuple[Layout, ...], msgspec.Meta(max_length=1 << 12)] = ()

    def inputs(self) -> list[Arg]:
        """All arguments with lists flattened, in order: positional first, then keywords."""
        flat: list[Arg] = []
        pending: list[Arg] = [value for _, value in reversed(self.kwargs)]
        pending.extend(reversed(self.args))
        while pending:
            arg = pending.pop()
            if isinstance(arg, Items):
                pending.extend(reversed(arg.items))
            else:
                flat.append(arg)
        return flat


EXECUTOR = Symbol("device", "executor")


def device_symbol(index: int) -> Symbol:
    """The device of an index, in a graph over several."""
    return Symbol("device", f"executor:{index}") if index else EXECUTOR


def device_index(node: Node) -> int | None:
    """The index of the device that a row names, if it does."""
    for arg in node.inputs():
        if isinstance(arg, Symbol) and arg.kind == "device":
            return int(arg.name.partition(":")[2] or 0)
    return None
