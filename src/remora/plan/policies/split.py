"""The decoder on one executor, its state on another: the picture from which disaggregation is argued."""

from __future__ import annotations

from typing import ClassVar

from remora.ir.annotated import Graph, Residency
from remora.ir.node import Ref, Slot
from remora.plan.estimate import Costs
from remora.plan.policies.policy import Policy, Wish
from remora.plan.situation import Situation


class Split(Policy):
    """Rows that read or make a KV cache run on the last executor, all others on the first."""

    name: ClassVar[str] = "split"

    def place(self, graph: Graph, situation: Situation, costs: Costs) -> Wish:
        last = situation.n_executors - 1
        executors = tuple(last if _touches_cache(graph, row) else 0 for row in range(len(graph.rows)))
        n = executors.count(last)
        what = f"the cache on executor {last}, all else on executor 0"
        return Wish(executors, what, f"{n} of {len(executors)} rows touch the cache")

    def home(self, nbytes: int, situation: Situation) -> int:
        return 0


def _touches_cache(graph: Graph, number: int) -> bool:
    row = graph.rows[number]
    if row.meaning.residency is Residency.KV_CACHE:
        return True

    def is_cache(arg: Ref | Slot) -> bool:
        meaning = graph.slots[arg.index].meaning if isinstance(arg, Slot) else graph.rows[arg.row].meaning
        return meaning.residency is Residency.KV_CACHE

    return any(is_cache(arg) for arg in row.tensors())
