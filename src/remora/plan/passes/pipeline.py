"""The pass that pipelines a batch: executors make stages of a model, one micro-batch behind the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import ClassVar

from remora.ir.annotated import Graph
from remora.ir.node import Ref
from remora.plan.estimate import Costs
from remora.plan.passes.batch_split import batch_worth_a_look
from remora.plan.passes.frame import Pass, Proposal
from remora.plan.passes.slices import Unsliceable, sliced
from remora.plan.rewrite import Rewrite
from remora.plan.situation import Situation

MICRO_BATCHES = (4, 8)
SLACK = 0.1  # of the whole: how far from its share a stage may end, if less travels there


class Pipeline(Pass):
    """A forward pass in stages: those that rows are placed in already, as where a model fits no single executor; else
    cut where each executor has its share of the predicted time and little travels. While one executor makes its stage
    of a micro-batch, the one before makes the next micro-batch."""

    name: ClassVar[str] = "pipeline"

    def propose(self, now: Rewrite, situation: Situation, costs: Costs) -> Iterator[Proposal]:
        graph = now.graph
        batch = batch_worth_a_look(graph, situation, costs)
        if batch is None or now.exact:  # in slices already
            return
        if len(set(graph.executors)) > 1:
            stages, what = graph.executors, "as placed"
        else:
            stages = staged(graph, costs, situation)
            first = [stages.index(executor) for executor in sorted(set(stages), key=stages.index)]
            what = "from rows " + ", ".join(map(str, first)) + " on"
        for count in MICRO_BATCHES:
            if count <= batch.count:
                sizes = [(batch.count + at) // count for at in range(count)]
                try:
                    made = sliced(now, batch, sizes, lambda row, at: stages[row])
                except Unsliceable:
                    return
                where = ", ".join(map(str, sorted(set(stages), key=stages.index)))
                yield Proposal(made, f"{count} micro-batches through stages on executors {where}, {what}")


def staged(graph: Graph, costs: Costs, situation: Situation) -> tuple[int, ...]:
    """An executor for each row: stages one after the other, the first where the rows were, each as long as its executor
    is fast; within some slack a stage ends where the fewest bytes are on their way."""
    home, n = graph.executors[0], situation.n_executors
    order = [home, *(executor for executor in range(n) if executor != home)]
    spent = list(accumulate((costs.row_s(home, row) for row in range(len(graph.rows))), initial=0.0))
    speeds = [1.0 / max(costs.part(executor).duration.seconds, 1e-9) for executor in order]
    crossing = _crossing_nbytes(graph)
    ends, target = [0], 0.0
    for speed in speeds[:-1]:
        target += speed / sum(speeds) * spent[-1]
        ends.append(_end(spent, crossing, target, ends[-1]))
    stages: list[int] = []
    for executor, (start, end) in zip(order, pairwise([*ends, len(graph.rows)]), strict=True):
        stages += [executor] * (end - start)
    return tuple(stages)


def _end(spent: Sequence[float], crossing: Sequence[int], target_s: float, start: int) -> int:
    """Behind how many rows a stage ends."""
    near = [at for at in range(start + 1, len(spent) - 1) if abs(spent[at] - target_s) <= SLACK * spent[-1]]
    if not near:
        return min(range(start, len(spent)), key=lambda at: abs(spent[at] - target_s))
    least = min(crossing[at] for at in near)
    return min((at for at in near if crossing[at] <= least * 1.01), key=lambda at: abs(spent[at] - target_s))


def _crossing_nbytes(graph: Graph) -> list[int]:
    """Behind so many rows, the bytes that rows before it have made and rows behind it read, each memory once."""
    last: dict[tuple[str, int, int], tuple[int, int, int]] = {}  # made behind, read until, bytes
    for number, row in enumerate(graph.rows):
        for arg in row.tensors():
            if isinstance(arg, Ref):
                facts, storage = graph.facts(arg), graph.storage(arg)
                if storage[0] == "slot" or facts is None:
                    continue
                made, _, nbytes = last.get(storage, (storage[1] + 1, 0, 0))
                last[storage] = made, number, max(nbytes, facts.nbytes)
    changes = [0] * (len(graph.rows) + 2)
    for made, read, nbytes in last.values():
        changes[made] += nbytes
        changes[read + 1] -= nbytes
    return list(accumulate(changes))
