"""Recurrent state: what a state-space or recurrent layer carries from step to step.

Its residency is `kv_cache`: it belongs to one sequence, each step reads and replaces it, it stays with the decoder
and is rebuilt from the tokens, so all that is decided for a cache holds for it. Its size does not grow.
A running statistic is none: it has no batch of sequences and no product reads it.
"""

from __future__ import annotations

from remora.ir.annotated import Meaning, Residency
from remora.semantics.attention import PRODUCTS
from remora.semantics.cache import MIN_DIMS
from remora.semantics.meanings import Meanings
from remora.semantics.reading import Reading, Root

_MAKES = frozenset({"zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty"})
_MIXES = PRODUCTS | {"sum", "conv1d", "convolution", "einsum"}


def recognise(reading: Reading) -> Meanings:
    """Memory of at least three dimensions that is copied over with what it was made of, and is read by a product."""
    said = Meanings()
    for root, writers in reading.writers.items():
        copies = [row for row in writers if reading.ops[row] == "copy_"]
        if not copies or not _lives_on(reading, root):
            continue
        place = reading.inputs[copies[0]][0]
        if len(reading.shape(place)) < MIN_DIMS or not reading.is_float(place):
            continue
        readers = _readers(reading, root)
        behind = reading.behind(readers)
        updates = [row for row in copies if row in behind or root[0] == "row"]
        mixes = [row for row in sorted(behind) if reading.ops[row] in _MIXES]
        if updates and mixes:
            mix = f"{reading.ops[mixes[0]]} (row {mixes[0]})"
            _say(reading, root, f"recurrent: row {updates[0]} replaces it, {mix} reads it", said)
    return said


def _lives_on(reading: Reading, root: Root) -> bool:
    if root[0] == "row":
        return root in reading.kept and reading.ops[root[1]] in _MAKES
    return not any(reading.graph.slots[number].uploaded for number in reading.slots_of.get(root, ()))


def _readers(reading: Reading, root: Root) -> set[int]:
    return {
        row
        for row, inputs in enumerate(reading.inputs)
        if any(reading.root(arg) == root for arg in inputs) and row not in reading.writers[root]
    } | {row for row in reading.writers[root] if reading.ops[row] != "copy_"}


def _say(reading: Reading, root: Root, reason: str, said: Meanings) -> None:
    meaning = Meaning(Residency.KV_CACHE, evidence=(reason,))
    for number in reading.slots_of.get(root, ()):
        said.slots[number] = meaning
    for row, roots in enumerate(reading.roots):
        if roots and roots[0] == root:
            said.rows[row] = meaning
