"""What a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from remora.ir.annotated import Graph
from remora.plan.situation import Situation


@dataclass(frozen=True)
class Wish:
    """The executor of each row, before bonds are kept (plan/legal.py), and why, in a sentence."""

    executors: tuple[int, ...]
    reason: str


class Policy(ABC):
    """Stateless: all that it may look at is in the situation.

    indexed: each executor is a device of its own, with generators of its own, and the program says what is where.
    """

    name: ClassVar[str]
    indexed: ClassVar[bool] = False

    @abstractmethod
    def place(self, graph: Graph, situation: Situation) -> Wish:
        """The executor of each row of an annotated graph."""

    def turn(self, situation: Situation) -> int:
        """What else a plan depends on: a plan is used again only at the same turn."""
        return 0

    def home(self, nbytes: int, situation: Situation) -> int:
        """Where an upload goes that nothing has used yet, when it has to go: the first executor with room for it."""
        for executor, (held, limit) in enumerate(
            zip(situation.held_nbytes, situation.limits_nbytes, strict=True)
        ):
            if held + nbytes <= limit * _ROOM:
                return executor
        return max(
            range(situation.n_executors),
            key=lambda executor: situation.limits_nbytes[executor] - situation.held_nbytes[executor],
        )


_ROOM = 0.85  # of an executor's memory for what is uploaded; the rest is for what is computed
