"""Which rows compute gradients: what depends on a derivative's kernel, or on the one that a backward pass starts with.

The other recognisers of training ask here.
"""

from __future__ import annotations

from remora.ir.annotated import Phase
from remora.ir.node import Ref, Slot
from remora.semantics.reading import Arg, Reading

STARTS = frozenset({"ones_like"})  # the engine's first gradient, of a loss without dimensions


def gradients(reading: Reading) -> frozenset[int]:
    """Rows whose results derive from a loss, not counting what reads a weight that an optimizer has just changed."""
    found: set[int] = set()
    made: set[object] = set()  # memory written with gradients
    for row, op in enumerate(reading.ops):
        inputs = reading.inputs[row]
        if (
            op.endswith("_backward")
            or "_backward_" in op
            or (
                op in STARTS
                and bool(inputs)
                and reading.shape(inputs[0]) == ()
                and reading.is_float(inputs[0])
            )
            or any(_is_gradient(reading, arg, found) or reading.root(arg) in made for arg in inputs)
        ):
            found.add(row)
            for place in reading.graph.rows[row].writes:
                root = reading.root(inputs[place])
                if root[0] == "row":
                    made.add(root)
    return frozenset(found)


def _is_gradient(reading: Reading, arg: Arg, found: set[int]) -> bool:
    if isinstance(arg, Ref):
        return arg.row in found
    return is_gradient_slot(reading, arg)


def is_gradient_slot(reading: Reading, slot: Slot) -> bool:
    """Whether an earlier graph made it in its backward pass."""
    return reading.graph.slots[slot.index].meaning.phase is Phase.BACKWARD
