"""Where attention happens: the fused op, or a product, a softmax and a product.

Says nothing of its own; the recognisers of caches and phases ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from remora.ir.node import Slot
from remora.semantics.reading import Arg, Reading

PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "mm"})
_SOFTMAX = frozenset({"softmax", "_softmax", "_safe_softmax"})
_PASSES = frozenset(  # between a product and the softmax, or behind it: scale, mask, cap, cast, drop out
    {"add", "add_", "sub", "mul", "mul_", "div", "div_", "where", "masked_fill", "masked_fill_", "tanh"}
    | {"native_dropout", "dropout", "bernoulli_", "nan_to_num", "clamp", "clamp_", "maximum", "slice", "cat"}
)
_FAR = 12  # rows from the softmax to either product, at most


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention. row: the one that gives its output, or its scores where the values are in another graph."""

    row: int
    query: Arg
    key: Arg
    value: Arg
    rows: tuple[int, ...]

    def name(self, reading: Reading) -> str:
        return f"{reading.ops[self.row]} (row {self.row})"


def attentions(reading: Reading) -> list[Attention]:
    """All of the graph, in order."""
    found: list[Attention] = []
    for row, op in enumerate(reading.ops):
        if op.endswith("backward"):
            continue
        inputs = reading.inputs[row]
        if ("scaled_dot_product" in op or op.endswith("_attention_forward")) and len(inputs) >= 3:
            found.append(Attention(row, inputs[0], inputs[1], inputs[2], (row,)))
        elif op in _SOFTMAX:
            attention = _around(reading, row)
            if attention is not None:
                found.append(attention)
    return found


def _around(reading: Reading, softmax: int) -> Attention | None:
    """The attention whose softmax this is."""
    scores = _nearest(reading, reading.sources[softmax], reading.sources, _is_product)
    values = _nearest(
        reading,
        reading.readers[softmax],
        reading.readers,
        _is_product,
    )
    if values is None:
        return None
    weights, value = _operands(reading, values)
    if softmax not in reading.before(_row_of(weights)):
        return None
    if scores is None:  # it is in an earlier graph: what is known of the keys is what is known of the values
        return Attention(values, weights, value, value, (softmax, values))
    query, key = _operands(reading, scores)
    return Attention(values, query, key, value, (scores, softmax, values))


def _is_product(reading: Reading, row: int) -> bool:
    return reading.ops[row] in PRODUCTS


def _operands(reading: Reading, row: int) -> tuple[Arg, Arg]:
    inputs = reading.inputs[row]
    return (inputs[-2], inputs[-1])  # baddbmm has the bias first


def _row_of(arg: Arg) -> tuple[int, ...]:
    return () if isinstance(arg, Slot) else (arg.row,)


def _nearest(
    reading: Reading,
    start: Iterable[int],
    edges: list[list[int]] | list[tuple[int, ...]],
    wanted: Callable[[Reading, int], bool],
) -> int | None:
    """The first row of a kind, going by edges through rows that only pass the scores on."""
    level, seen = list(start), set(start)
    for _ in range(_FAR):
        following: list[int] = []
        for row in level:
            if wanted(reading, row):
                return row
            if reading.ops[row] in _PASSES or reading.carries(row):
                following += [other for other in edges[row] if other not in seen]
                seen.update(following)
        level = following
    return None
