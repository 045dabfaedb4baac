"""From a captured graph to a decision: annotate, let the policy place, keep the bonds, split, predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from remora.errors import PlanError
from remora.ir.annotated import Graph
from remora.plan.devices import Pool
from remora.plan.estimate import costs
from remora.plan.legal import legalised
from remora.plan.parts import Parts, placed
from remora.plan.passes import Pass, PassChoice, improved, lay
from remora.plan.placed import Placed
from remora.plan.policies.policy import Policy, Wish
from remora.plan.rewrite import Rewrite, unchanged
from remora.plan.situation import Situation
from remora.semantics.annotate import annotate, stale
from remora.semantics.memory import EMPTY


@dataclass(frozen=True)
class Decision:
    """How a graph is to run.

    graph: as the program wrote it, placed. rewrite: as it runs, passes applied. moves: storages of slots
    (`Outside.storage`) that get an owner, or another one, first, with it. predicted: by the model alone. draws: where
    random numbers are drawn, if any are. choices: of the passes that had something to propose.
    """

    graph: Graph
    rewrite: Rewrite
    parts: Parts
    moves: tuple[tuple[int, int], ...]
    wish: Wish
    predicted: Placed
    draws: int | None = None
    choices: tuple[PassChoice, ...] = ()


class Planner:
    """Plans the graphs of one session, and remembers what they taught about each other.

    Args:
        pool: what was measured of the executors. passes: that may change plans, in order.
    """

    def __init__(self, policy: Policy, pool: Pool, passes: Sequence[Pass] = ()) -> None:
        self.policy, self.pool, self.passes = policy, pool, passes
        self.memory = EMPTY

    def decide(self, graph: Graph, situation: Situation) -> Decision:
        """Plans a captured graph.

        Raises:
            PlanError: it does not fit anywhere, or breaks a stage rule.
        """
        graph, self.memory = annotate(graph, self.memory)
        table = costs(graph, self.pool.devices)
        wish = self.policy.place(graph, situation, table)
        # where each device has generators of its own, its rows keep their order there
        random = () if self.policy.indexed else situation.random
        legal = legalised(graph, wish.executors, situation, random)
        if self.policy.indexed and (legal.moves or legal.executors != wish.executors):
            raise PlanError("rows of different devices share memory")
        graph = placed(graph, legal.executors)
        for row, executor in enumerate(legal.executors):
            if executor >= situation.n_executors:
                raise PlanError(
                    f"{self.policy.name} puts row {row} ({graph.rows[row].node.op}) on executor {executor} of "
                    f"{situation.n_executors}"
                )
        laid = lay(unchanged(graph), situation if not self.policy.indexed else replace(situation, random=()))
        laid, choices = improved(laid, self.passes, situation)
        planned = {row for part in laid.parts.parts for row in part.rows}
        for row in range(len(laid.rewrite.graph.rows)):
            if row not in planned:
                raise PlanError(f"row {row} ({laid.rewrite.graph.rows[row].node.op}) is in no part")
        draws = legal.executors[min(random)] if random else None
        return Decision(
            graph, laid.rewrite, laid.parts, laid.legal.moves, wish, laid.predicted, draws, choices
        )

    def is_outdated(self, graph: Graph) -> bool:
        """Whether a later graph has taught what a planned one does not say yet."""
        return stale(graph, self.memory)
