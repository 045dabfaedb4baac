"""Attention of one new token over caches that grow: which rows of a template may run as one, inside of a graph. Pure.

A graph has one shape, a cache a new one at each step. So the rows `cat(past, new)` of keys and of values and the
attention that reads both become one call (loose.py), which finds the caches and their length on the device.
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


def attends(template: Template, growing: Collection[int], fences: Collection[int]) -> dict[int, Attend]:
    """By the row of the attention. growing: rows that may grow a tensor in place. fences: rows that all others keep
    their side of."""
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
        if any(cat not in growing or read[Ref(cat)] != 1 or not _grows_by_one(nodes[cat]) for cat in cats):
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


def _grows_by_one(node: Node) -> bool:
    """`cat` of one that comes from outside and one that is made here."""
    items = node.args[0]
    if node.op != CAT or not isinstance(items, Items) or len(items.items) != 2:
        return False
    past, new = items.items
    return isinstance(past, Slot) and isinstance(new, Ref)
