"""Which rows of a template may grow a tensor in place, and who may then read it as a view into a larger buffer.

A program believes that what `cat` gives is contiguous and shares memory with nothing. A row may be handed a view
instead only if no program can tell: it copies elements as they are, or it is attention, whose results are the
same bits for any distance between the matrices that it reads. Everything else is strict, and gets a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from remora.ir.graph import Template
from remora.ir.node import FREE, Arg, Items, Node, Ref, Slot

CAT, SELECT = "aten.cat.default", "aten.index_select.default"
_ATTENTION = "aten.scaled_dot_product_attention.default"
_READERS: dict[str, tuple[int | str, ...]] = {
    CAT: (0,),
    SELECT: (0,),
    "aten.clone.default": (0,),
    "aten._to_copy.default": (0,),
    _ATTENTION: (1, 2, "key", "value"),
}
_VIEWS = frozenset(
    f"aten.{op}"
    for op in (
        "expand.default",
        "permute.default",
        "select.int",
        "slice.Tensor",
        "transpose.int",
        "unsqueeze.default",
    )
)


@dataclass(frozen=True)
class Readers:
    """growing: rows whose result may be a view. strict: slots whose reader must not get one."""

    growing: frozenset[int]
    strict: tuple[int, ...]


def readers(template: Template, keep: tuple[tuple[int, int], ...]) -> Readers:
    """Decided by the rows of this template; a later one that reads a kept view strictly gets a copy then."""
    kept, strict = set(keep), set[Ref | Slot]()
    growing, go_on = set[int](), set[Ref | Slot]()  # go_on: what a growing row grows from
    for row in range(len(template.nodes) - 1, -1, -1):  # who reads a row comes after it
        node, result = template.nodes[row], Ref(row)
        if ((row, 0) in kept or result in go_on) and result not in strict and _grows(node):
            growing.add(row)
            go_on.update(arg for _, arg in islice(_inputs(node), 1))
        passes_on = node.op in _VIEWS and (row, 0) not in kept and result not in strict
        for place, arg in _inputs(node):
            if not (passes_on and place == 0) and not _reads_views(node, place):
                strict.add(arg)
    return Readers(frozenset(growing), tuple(sorted(arg.index for arg in strict if isinstance(arg, Slot))))


def _grows(node: Node) -> bool:
    contiguous = not any(node.layouts)
    if node.op == CAT:
        return contiguous and not node.kwargs and len(node.args) == 2 and isinstance(node.args[0], Items)
    return node.op == SELECT and contiguous and not node.kwargs and len(node.args) == 3


def _reads_views(node: Node, place: int | str) -> bool:
    if FREE in node.layouts and node.op != _ATTENTION:  # the program asks for the strides that come out
        return False
    return place in _READERS.get(node.op, ())


def _inputs(node: Node) -> Iterator[tuple[int | str, Ref | Slot]]:
    arguments: list[tuple[int | str, Arg]] = [*enumerate(node.args), *node.kwargs]
    for place, arg in arguments:
        for item in Node(node.op, (arg,)).inputs():
            if isinstance(item, (Ref, Slot)):
                yield place, item
