"""Layers: the index of the repeated block that a row belongs to, from the module path or from repetition."""

from __future__ import annotations

from itertools import pairwise

from remora.ir.annotated import Meaning
from remora.semantics.meanings import Meanings
from remora.semantics.reading import Reading
from remora.semantics.repeats import repeated

# What models call the list of their blocks. A list of another name counts if its items run the same ops.
LISTS = frozenset(
    {"h", "layer", "layers", "block", "blocks", "resblocks", "stages", "group", "albert_layer_groups"}
)


def recognise(reading: Reading) -> Meanings:
    """Of rows; and of slots that only rows of one layer read."""
    said = Meanings()
    paths = [row.module for row in reading.graph.rows]
    if any(paths):
        _by_path(reading, paths, said)
    else:
        _by_repetition(reading, said)
    for number, readers in enumerate(reading.slot_readers):
        layers = {said.row(row).layer for row, _ in readers}
        if len(layers) == 1 and (layer := layers.pop()) is not None:
            said.slots[number] = Meaning(
                layer=layer, evidence=(f"layer: only rows of layer {layer} read it",)
            )
    return said


def _by_path(reading: Reading, paths: list[str], said: Meanings) -> None:
    alike: dict[str, bool] = {}
    parsed: dict[str, list[tuple[str, int]]] = {path: _numbered(path) for path in dict.fromkeys(paths)}
    meanings: dict[tuple[str, int], Meaning] = {}
    for row, path in enumerate(paths):
        for place in parsed[path]:
            prefix, index = place
            if prefix.rpartition(".")[2] not in LISTS:
                if prefix not in alike:
                    alike[prefix] = _runs_alike(reading, paths, parsed, prefix)
                if not alike[prefix]:
                    continue
            meaning = meanings.get(place)
            if meaning is None:
                evidence = (f"layer: item {index} of {prefix}",)
                meaning = meanings[place] = Meaning(layer=index, evidence=evidence)
            said.rows[row] = meaning
            break


def _numbered(path: str) -> list[tuple[str, int]]:
    """Of `Net.blocks.3.mlp.0 (Linear)`: ('Net.blocks', 3), ('Net.blocks.3.mlp', 0)."""
    parts = path.partition(" (")[0].split(".")
    return [
        (".".join(parts[:at]), int(part))
        for at, part in enumerate(parts)
        if at and part.isdecimal() and len(part) < 7
    ]


def _runs_alike(
    reading: Reading, paths: list[str], parsed: dict[str, list[tuple[str, int]]], prefix: str
) -> bool:
    """Whether at least two items of a list of modules run here, each behind the other, and all the same ops."""
    ran: dict[int, list[int]] = {}
    for row, path in enumerate(paths):
        for other, index in parsed[path]:
            if other == prefix:
                ran.setdefault(index, []).append(row)
    rows = list(ran.values())
    ops = [[reading.ops[row] for row in each] for each in rows]
    if len(ops) < 2 or any(each != ops[0] for each in ops):
        return False
    return all(not reading.behind(one).isdisjoint(other) for one, other in pairwise(rows))


def _by_repetition(reading: Reading, said: Meanings) -> None:
    found = repeated(reading)
    if found is None:
        return
    first = 1 + max(
        (
            slot.meaning.layer
            for slot in reading.graph.slots
            if slot.meaning.layer is not None and not slot.uploaded
        ),
        default=-1,
    )
    for block in range(found.count):
        start = found.start + block * found.period
        evidence = (f"layer: block {block} of {found.count} equal ones of {found.period} rows",)
        meaning = Meaning(layer=first + block, evidence=evidence)
        said.rows.update(dict.fromkeys(range(start, start + found.period), meaning))
