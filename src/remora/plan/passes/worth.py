"""Which graphs passes that give work to other executors look at. Pure."""

from __future__ import annotations

from collections import Counter

from remora.ir.annotated import Graph, Phase
from remora.plan.estimate import Costs
from remora.plan.situation import Situation


def goes_forward_for(least_s: float, graph: Graph, situation: Situation, costs: Costs) -> bool:
    """Whether a graph is a prefill or a forward pass that takes at least so long, and other executors may share it:
    there are some, and it draws no random numbers. A decode step has other sizes each time."""
    if situation.n_executors < 2 or situation.random:
        return False
    phases = Counter(row.meaning.phase for row in graph.rows if row.meaning.phase is not None)
    if phases and phases.most_common(1)[0][0] not in (Phase.PREFILL, Phase.FORWARD):
        return False
    return costs.part(graph.executors[0]).duration.seconds >= least_s
