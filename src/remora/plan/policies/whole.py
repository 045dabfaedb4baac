"""Policies that run a graph on one executor."""

from __future__ import annotations

from random import Random as Generator
from typing import ClassVar

from remora.ir.annotated import Graph
from remora.plan.estimate import Costs
from remora.plan.policies.policy import Policy, Wish
from remora.plan.situation import Situation


def _all(graph: Graph, executor: int, reason: str) -> Wish:
    return Wish((executor,) * len(graph.rows), f"all on executor {executor}", reason)


class Local(Policy):
    """The first executor alone."""

    name: ClassVar[str] = "local"

    def place(self, graph: Graph, situation: Situation, costs: Costs) -> Wish:
        return _all(graph, 0, "it is the first executor, and no other is used")

    def home(self, nbytes: int, situation: Situation) -> int:
        return 0


class Blind(Policy):
    """Round robin: the next executor for each program, from sync to sync. What it computed before has to travel."""

    name: ClassVar[str] = "blind"
    turns: ClassVar[bool] = True

    def place(self, graph: Graph, situation: Situation, costs: Costs) -> Wish:
        return _all(graph, self.turn(situation), f"executors take turns, program {situation.program}")

    def turn(self, situation: Situation) -> int:
        return situation.program % situation.n_executors


class Random(Policy):
    """Any executor for each program, the same ones in each run of the client's program."""

    name: ClassVar[str] = "random"
    turns: ClassVar[bool] = True
    SEED = 0

    def place(self, graph: Graph, situation: Situation, costs: Costs) -> Wish:
        return _all(graph, self.turn(situation), f"it was drawn for program {situation.program}")

    def turn(self, situation: Situation) -> int:
        return Generator(self.SEED * 1_000_003 + situation.program).randrange(situation.n_executors)


class LeastLoaded(Policy):
    """The executor with the shortest queue; of several, the one that holds least."""

    name: ClassVar[str] = "least_loaded"
    turns: ClassVar[bool] = True

    def place(self, graph: Graph, situation: Situation, costs: Costs) -> Wish:
        executor = self.turn(situation)
        return _all(graph, executor, f"{situation.queued[executor]} segments queued, the fewest")

    def turn(self, situation: Situation) -> int:
        return min(
            range(situation.n_executors),
            key=lambda executor: (situation.queued[executor], situation.held_nbytes[executor], executor),
        )


class DataAware(Policy):
    """The executor to which the fewest bytes have to travel now."""

    name: ClassVar[str] = "data_aware"

    def place(self, graph: Graph, situation: Situation, costs: Costs) -> Wish:
        missing = [
            sum(
                slot.facts.nbytes
                for slot, homes in zip(graph.slots, situation.homes, strict=True)
                if executor not in homes
            )
            for executor in range(situation.n_executors)
        ]
        executor = min(range(situation.n_executors), key=lambda executor: (missing[executor], executor))
        return _all(graph, executor, f"{missing[executor]:,} bytes would travel, the fewest")
