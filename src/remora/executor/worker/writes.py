"""What an instruction overwrites of the values that exist: which of its arguments, and how much of them.

Read from the op's schema when a program is compiled, for `undo.py`, which saves it before the instruction runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remora.executor.worker.kernels import grows
from remora.ir.node import Const, Node
from remora.ops.own import NAMESPACE
from remora.ops.schema import traits

# Ops that write only where an index says: along a dimension, at points of one, or as `tensor[indices] = …` does.
_ALONG = frozenset({"index_copy_", "index_fill_", "index_add_", "index_reduce_"})
_AT_POINTS = frozenset({"scatter_", "scatter_add_", "scatter_reduce_"})
_AT_INDICES = frozenset({"index_put_", "_index_put_impl_"})


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor is written only where an index says. kind: `along`, `points` or `indices`. dim, index: where the
    call has them; `dim` is unused for `indices`, of which there is a list."""

    kind: str
    dim: int
    index: int


@dataclass(frozen=True, slots=True)
class Write:
    """places: where the call has tensors, or lists of them, that it writes. part: how much of the first.
    outs: those among them that are given as `out=` and may get other sizes.
    draws: the session's default generator is drawn from. generator: the call looks up a named one.
    """

    places: tuple[int, ...] = ()
    part: Part | None = None
    outs: frozenset[int] = frozenset()
    draws: bool = False
    generator: bool = False


GENERATOR = Write(generator=True)


def write_of(op: Any, node: Node) -> Write | None:
    """What a row overwrites or draws, or None. A generator that the row is given looks after itself."""
    known = traits(op)
    if not (known.mutates or known.random):
        return None
    given = tuple(arg.value if isinstance(arg, Const) else arg for arg in node.args)
    arguments = op._schema.arguments
    position = {argument.name: at for at, argument in enumerate(arguments) if at < len(node.args)}
    position |= {name: at for at, (name, _) in enumerate(node.kwargs, len(node.args))}
    names = [arguments[place].name if isinstance(place, int) else place for place in known.writes(given)]
    places = tuple(position[name] for name in names if name in position)
    outs = frozenset(position[a.name] for a in arguments if a.is_out and a.name in position)
    draws = known.draws(given)
    return Write(places, _part(op, position), outs, draws) if places or draws else None


def undoable(op: Any) -> bool:
    """Whether what the op changes can be told from its schema: other namespaces may do anything, and a storage
    that grew counts against the limit at once."""
    return op.namespace in ("aten", NAMESPACE) and not grows(op) and not traits(op).metadata_only_write


def _part(op: Any, position: dict[str, int]) -> Part | None:
    base = op._schema.name.split("::")[1]
    dim, index = position.get("dim", -1), position.get("index", -1)
    if base in _ALONG and dim >= 0 and index >= 0:
        return Part("along", dim, index)
    if base in _AT_POINTS and dim >= 0 and index >= 0:
        return Part("points", dim, index)
    if base in _AT_INDICES and "indices" in position:
        return Part("indices", -1, position["indices"])
    return None
