"""What of a graph lies in a batch: how far a cut of some of its inputs goes through its rows. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from remora.ir.annotated import Graph, Residency
from remora.ir.node import Ref, Slot
from remora.ops.separate import Separation, separate
from remora.plan.rewrite import first_holes

STAYS = frozenset({Residency.WEIGHT, Residency.KV_CACHE, Residency.OPTIMIZER_STATE})


@dataclass(frozen=True)
class Batch:
    """A batch in a graph.

    count: its entries. inputs: slots that lie in it along their first dimension. rows: of each row, how the batch goes
    through; None: it is made as a whole. joined: rows that are made as a whole and need, directly or not, all of the
    batch; other whole rows need none of it.
    """

    count: int
    inputs: frozenset[int]
    rows: tuple[Separation | None, ...]
    joined: frozenset[int]

    def dim(self, value: Ref | Slot) -> int | None:
        """Along which dimension a value lies in the batch; None: it does not."""
        if isinstance(value, Slot):
            return 0 if value.index in self.inputs else None
        made = self.rows[value.row]
        return None if made is None else made.outs[value.out]


def batch_of(graph: Graph, inputs: Iterable[int], count: int) -> Batch | None:
    """How a batch goes through a graph; None: memory is written that would have to stay whole."""
    starts = first_holes(graph)
    given = frozenset(inputs)
    rows: list[Separation | None] = []
    joined: set[int] = set()
    for number, row in enumerate(graph.rows):
        tensors = row.tensors()
        dims = [_dim(rows, given, arg) for arg in tensors]
        found = None
        if any(dim is not None for dim in dims):
            holes = graph.holes[starts[number] : starts[number + 1]]
            found = separate(row, [graph.facts(arg) for arg in tensors], dims, holes, count)
            if found is None:
                joined.add(number)
        elif any(
            isinstance(arg, Ref) and (arg.row in joined or rows[arg.row] is not None) for arg in tensors
        ):
            joined.add(number)
        for at in () if found is not None and found.pure else row.writes:
            if found is None or dims[at] is None or graph.storage(tensors[at])[0] == "slot":
                return None
        rows.append(found)
    return Batch(count, given, tuple(rows), frozenset(joined))


def _dim(rows: list[Separation | None], inputs: frozenset[int], arg: Ref | Slot) -> int | None:
    if isinstance(arg, Slot):
        return 0 if arg.index in inputs else None
    made = rows[arg.row]
    return None if made is None else made.outs[arg.out]


def batched_inputs(graph: Graph) -> tuple[int, frozenset[int]]:
    """The entries of the batch that a graph is given, and the slots that lie in it: of its inputs that do not stay,
    those whose first dimension is as long as that of most bytes. 0: there is none."""
    nbytes: Counter[int] = Counter()
    for slot in graph.slots:
        if slot.meaning.residency not in STAYS and slot.facts.shape:
            nbytes[slot.facts.shape[0]] += slot.facts.nbytes
    counts = [count for count in nbytes if count > 1]
    if not counts:
        return 0, frozenset()
    count = max(counts, key=lambda count: (nbytes[count], count))
    return count, frozenset(
        at
        for at, slot in enumerate(graph.slots)
        if slot.meaning.residency not in STAYS and slot.facts.shape[:1] == (count,)
    )
