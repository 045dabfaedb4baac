"""The repeated block of the program, such as a layer, that each row belongs to, by name. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from remora.ir.annotated import Row


def block_names(rows: Sequence[Row]) -> list[str]:
    """For each row of a layer the path up to the layer's number: encoder and decoder have a layer 0 each. A row
    outside of modules, such as one that a function of the layer ran, has the name of the nearest of its layer; one of
    no layer has ''."""
    names = ["" for _ in rows]
    for number, row in enumerate(rows):
        path, layer = module_path(row), str(row.meaning.layer)
        if layer in path:
            names[number] = ".".join(path[: path.index(layer) + 1])
    for order in (range(len(rows)), range(len(rows) - 1, -1, -1)):
        last: dict[int, str] = {}
        for number in order:
            at = rows[number].meaning.layer
            if at is not None:
                names[number] = names[number] or last.get(at, "")
                last[at] = names[number]
    return [
        name or (f"layer {row.meaning.layer}" if row.meaning.layer is not None else "")
        for name, row in zip(names, rows, strict=True)
    ]


def stretches(rows: Sequence[Row]) -> list[int | None]:
    """For each row of a layer which stretch of the program it is in, from one layer to the next; None of no layer. Two
    models of one form have layers of the same names, and the stretches of one are not those of the other."""
    found: list[int | None] = []
    last, count = "", -1
    for name in block_names(rows):
        if name and name != last:
            last, count = name, count + 1
        found.append(count if name else None)
    return found


def module_path(row: Row) -> list[str]:
    """Of the row's module, without the class that provenance puts behind it."""
    module = row.module.partition(" (")[0]
    return module.split(".") if module else []
