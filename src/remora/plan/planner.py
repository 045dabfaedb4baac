"""From a captured graph to a decision: annotate, let the policy place, keep the bonds, split, predict."""

from __future__ import annotations

from dataclasses import dataclass

from remora.errors import PlanError
from remora.ir.annotated import Graph, Stage
from remora.ir.stages import enter
from remora.plan.devices import Pool
from remora.plan.estimate import costs
from remora.plan.legal import legalised
from remora.plan.parts import Parts, placed, split
from remora.plan.placed import Placed, predict
from remora.plan.policies.policy import Policy, Wish
from remora.plan.situation import Situation
from remora.semantics.annotate import annotate, stale
from remora.semantics.memory import EMPTY


@dataclass(frozen=True)
class Decision:
    """How a graph is to run.

    graph: placed. moves: storages of slots (`Outside.storage`) that get an owner, or another one, first, with it.
    predicted: by the model alone. draws: where random numbers are drawn, if any are.
    """

    graph: Graph
    parts: Parts
    moves: tuple[tuple[int, int], ...]
    wish: Wish
    predicted: Placed
    draws: int | None = None


class Planner:
    """Plans the graphs of one session, and remembers what they taught about each other.

    Args:
        pool: what was measured of the executors.
    """

    def __init__(self, policy: Policy, pool: Pool) -> None:
        self.policy, self.pool = policy, pool
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
        graph = enter(placed(graph, legal.executors), Stage.PLACED)
        for row, executor in enumerate(legal.executors):
            if executor >= situation.n_executors:
                raise PlanError(
                    f"{self.policy.name} puts row {row} ({graph.rows[row].node.op}) on executor {executor} of "
                    f"{situation.n_executors}"
                )
        parts = split(graph, *legal.whereabouts(graph, situation))
        planned = {row for part in parts.parts for row in part.rows}
        for row in range(len(graph.rows)):
            if row not in planned:
                raise PlanError(f"row {row} ({graph.rows[row].node.op}) is in no part")
        predicted = predict(graph, parts, table, self.pool)
        draws = legal.executors[min(random)] if random else None
        return Decision(graph, parts, legal.moves, wish, predicted, draws)

    def is_outdated(self, graph: Graph) -> bool:
        """Whether a later graph has taught what a planned one does not say yet."""
        return stale(graph, self.memory)
