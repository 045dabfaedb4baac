"""What a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from remora.ir.annotated import Graph
from remora.plan.duration import Duration
from remora.plan.estimate import Costs
from remora.plan.situation import Situation


@dataclass(frozen=True)
class Wish:
    """The executor of each row, before bonds are kept (plan/legal.py), and why.

    what: the choice in a few words. reason: one sentence. alternative, alternative_took: the best that was not taken,
    '' and None if nothing else was considered.
    """

    executors: tuple[int, ...]
    what: str
    reason: str
    alternative: str = ""
    alternative_took: Duration | None = None


class Policy(ABC):
    """Stateless: all that it may look at is in the situation.

    indexed: each executor is a device of its own, with generators of its own, and the program says what is where.
    optimises: passes may change what it has placed, where that is predicted to pay.
    """

    name: ClassVar[str]
    turns: ClassVar[bool] = False  # whether `turn` says anything
    indexed: ClassVar[bool] = False
    optimises: ClassVar[bool] = False

    @abstractmethod
    def place(self, graph: Graph, situation: Situation, costs: Costs) -> Wish:
        """The executor of each row of an annotated graph.

        Args:
            costs: of its rows on each executor's device.

        Raises:
            PlanError: there is no placement; says what is missing.
        """

    def turn(self, situation: Situation) -> int:
        """What else a plan depends on: a plan is used again only at the same turn."""
        return 0

    def home(self, nbytes: int, situation: Situation) -> int:
        """Where an upload goes that nothing has used yet, when it has to go: the first executor with room for it, or
        else the one with most of it."""
        rooms = situation.rooms_nbytes(ROOM)
        return next((at for at, room in enumerate(rooms) if room >= nbytes), rooms.index(max(rooms)))


ROOM = 0.85  # of an executor's memory for what is uploaded; the rest is for what is computed
