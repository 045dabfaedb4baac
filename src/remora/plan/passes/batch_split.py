"""The pass that splits a batch: each executor makes a share of it, by copies of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from remora.ir.annotated import Graph
from remora.plan.estimate import Costs
from remora.plan.passes.frame import Pass, Proposal
from remora.plan.passes.separable import Batch, batch_of, batched_inputs
from remora.plan.passes.slices import Unsliceable, sliced
from remora.plan.passes.worth import goes_forward_for
from remora.plan.rewrite import Rewrite
from remora.plan.situation import Situation

LEAST_S = 2e-3  # a graph that takes less is left alone


class BatchSplit(Pass):
    """A prefill, or a forward pass, whose rows run on one executor: its batch over all of them. What lives on, such as
    a KV cache, is put together where the rows ran; each layer's part sets out as soon as it is made."""

    name: ClassVar[str] = "batch_split"

    def propose(self, now: Rewrite, situation: Situation, costs: Costs) -> Iterator[Proposal]:
        batch = batch_worth_a_look(now.graph, situation, costs)
        if batch is None or len(set(now.graph.executors)) != 1:
            return
        home = now.graph.executors[0]
        sizes = shares(batch.count, _seconds(costs, situation.n_executors))
        order = [home, *(executor for executor in range(len(sizes)) if executor != home)]
        order = [executor for executor in order if sizes[executor]]
        if len(order) < 2:
            return
        each = [sizes[executor] for executor in order]
        try:
            made = sliced(now, batch, each, lambda row, at: order[at])
        except Unsliceable:
            return
        shown = ", ".join(
            f"{size} on executor {executor}" for size, executor in zip(each, order, strict=True)
        )
        yield Proposal(made, f"a batch of {batch.count} in slices: {shown}")


def batch_worth_a_look(graph: Graph, situation: Situation, costs: Costs) -> Batch | None:
    """The batch of a graph that goes forward and takes its time; None: it has none, or is no such graph."""
    if not goes_forward_for(LEAST_S, graph, situation, costs):
        return None
    count, inputs = batched_inputs(graph)
    return batch_of(graph, inputs, count) if count > 1 else None


def _seconds(costs: Costs, n: int) -> list[float]:
    return [costs.part(executor).duration.seconds for executor in range(n)]


def shares(count: int, seconds: Sequence[float]) -> list[int]:
    """Entries for each executor, so that all are done at about the same time: as many as it could make alone in a
    second, of all, what is left over to where it is done first."""
    speeds = [1.0 / max(took, 1e-9) for took in seconds]
    sizes = [int(count * speed / sum(speeds)) for speed in speeds]
    while sum(sizes) < count:
        soonest = min(range(len(sizes)), key=lambda at: ((sizes[at] + 1) / speeds[at], at))
        sizes[soonest] += 1
    return sizes
