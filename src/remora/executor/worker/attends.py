"""Caches that grow, inside of graphs: which rows of a template append to one, and which attend to what was. Pure.

A graph has one shape, a cache a new one at each step. So a row `cat(past, new)` becomes a call that writes what is new
(loose.py) where a table on the device says. Where results need not be exact, such rows of keys and of values and the
attention that reads both become one call, which finds the caches and their length there too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from remora.executor.worker.readers import CAT
from remora.ir.graph import Template
from remora.ir.node import Const, Items, Node, Ref, Slot

ATTENTION = "aten.scaled_dot_product_attention.default"
_KEYWORDS = frozenset({"scale", "enable_gqa"})


@dataclass(frozen=True, slots=True)
class Attend:
    """Rows: attention, and the two that grow its keys and its values."""

    row: int
    keys: int
    values: int


def appends(template: Template, growing: Collection[int], fences: Collection[int]) -> frozenset[int]:
    """Rows that make a cache longer by what is made here.

    growing: rows that may grow a tensor in place. fences: rows that all others keep their side of. Room for what is
    new is made before any row runs, so none of them may stand before.
    """
    before = min(fences, default=len(template.nodes))
    return frozenset(row for row in growing if row < before and _grows_by_what_is_made(template.nodes[row]))


def attends(template: Template, appending: Collection[int], fences: Collection[int]) -> dict[int, Attend]:
    """By the row of the attention. appending: rows that `appends` found."""
    nodes = template.nodes
    read = Counter(arg for node in nodes for arg in node.inputs() if isinstance(arg, Ref))
    found: dict[int, Attend] = {}
    for row, node in enumerate(nodes):
        if node.op != ATTENTION or not _plain(node):
            continue
        keys, values = node.args[1:3]
        if not (isinstance(keys, Ref) and isinstance(values, Ref)) or keys == values:
            continue
        cats = (keys.row, values.row)
        if any(cat not in appending or read[Ref(cat)] != 1 for cat in cats):
            continue
        if not any(
            fence in fences for fence in range(min(cats), row)
        ):  # the cats will run as late as it does
            found[row] = Attend(row, *cats)
    return found


def _plain(node: Node) -> bool:
    """Attention without a mask, without dropout, over everything."""
    rest = node.args[3:]
    masked = bool(rest) and rest[0] != Const(None)
    return not masked and len(rest) < 2 and all(name in _KEYWORDS for name, _ in node.kwargs)


def _grows_by_what_is_made(node: Node) -> bool:
    """`cat` of one that comes from outside and one that is made here."""
    items = node.args[0]
    if node.op != CAT or not isinstance(items, Items) or len(items.items) != 2:
        return False
    past, new = items.items
    return isinstance(past, Slot) and isinstance(new, Ref)
