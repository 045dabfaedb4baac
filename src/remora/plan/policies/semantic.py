"""The policy that decides from meaning: state, cache and weights stay with the rows that read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from remora.ir.annotated import Graph, Residency
from remora.ir.node import Ref, Slot
from remora.plan.duration import Duration
from remora.plan.estimate import Costs, costs
from remora.plan.legal import legalised
from remora.plan.memory import footprint
from remora.plan.parts import placed, split
from remora.plan.placed import predict
from remora.plan.policies.policy import Policy, Wish
from remora.plan.situation import Situation

STAYS = frozenset({Residency.WEIGHT, Residency.KV_CACHE, Residency.OPTIMIZER_STATE})


@dataclass(frozen=True)
class Option:
    """A placement that could be: its predicted duration, and by how many bytes it does not fit."""

    executors: tuple[int, ...]
    what: str
    duration: Duration
    over_nbytes: int


class Semantic(Policy):
    """The predicted best of: everything on one executor, for each of them; and each row where what stays of its
    inputs is. Never one that is predicted worse than the best single executor that holds the program."""

    name: ClassVar[str] = "semantic"

    def place(self, graph: Graph, situation: Situation) -> Wish:
        options = list(self.options(graph, situation))
        fitting = [option for option in options if not option.over_nbytes] or options
        best = min(fitting, key=lambda option: (option.over_nbytes, option.duration.seconds))
        others = [option for option in options if option is not best]
        reason = f"{best.what}: predicted {best.duration}"
        if others:
            other = min(others, key=lambda option: (option.over_nbytes, option.duration.seconds))
            lacks = f", {other.over_nbytes:,} bytes too large" if other.over_nbytes else ""
            reason += f"; next best, {other.what}: {other.duration}{lacks}"
        return Wish(best.executors, reason)

    def options(self, graph: Graph, situation: Situation) -> Iterator[Option]:
        """What is compared, each as it would really run: bonds kept, parts and transfers counted."""
        table = costs(graph, situation.pool.devices)
        wishes = [
            ((executor,) * len(graph.rows), f"all on executor {executor}")
            for executor in range(situation.n_executors)
        ]
        followed = _followed(graph, situation)
        if len(set(followed)) > 1:
            wishes.append((followed, "each row where what it reads stays"))
        for wished, what in wishes:
            yield _option(graph, situation, table, wished, what)


def _option(graph: Graph, situation: Situation, table: Costs, wished: tuple[int, ...], what: str) -> Option:
    legal = legalised(graph, wished, situation, ())
    at = placed(graph, legal.executors)
    moves = dict(legal.moves)
    owners = [
        moves.get(slot.storage, owner) for slot, owner in zip(graph.slots, situation.owners, strict=True)
    ]
    parts = split(at, situation.homes, tuple(-1 if owner is None else owner for owner in owners))
    over = 0
    for executor in set(legal.executors):
        rows = [row for row, here in enumerate(legal.executors) if here == executor]
        needed = (
            situation.held_nbytes[executor]
            + footprint(graph, rows).made_nbytes
            + _missing(graph, situation, rows, executor)
        )
        over += max(0, needed - situation.limits_nbytes[executor])
    return Option(legal.executors, what, predict(at, parts, table, situation.pool).estimate.duration, over)


def _missing(graph: Graph, situation: Situation, rows: list[int], executor: int) -> int:
    """Bytes of slots that rows on an executor read and that are not there yet."""
    read = {arg.index for row in rows for arg in graph.rows[row].tensors() if isinstance(arg, Slot)}
    return sum(graph.slots[slot].facts.nbytes for slot in read if executor not in situation.homes[slot])


def _followed(graph: Graph, situation: Situation) -> tuple[int, ...]:
    """Each row at the executor that owns most bytes of what stays among its inputs; else where its inputs are made."""
    executors: list[int] = []
    for row in graph.rows:
        nbytes: dict[int, int] = {}
        made: list[int] = []
        for arg in row.tensors():
            if isinstance(arg, Ref):
                made.append(executors[arg.row])
            elif (owner := situation.owners[arg.index]) is not None:
                stays = graph.slots[arg.index].meaning.residency in STAYS
                if stays:
                    nbytes[owner] = nbytes.get(owner, 0) + graph.slots[arg.index].facts.nbytes
        if nbytes:
            executors.append(max(nbytes, key=lambda executor: (nbytes[executor], -executor)))
        elif made:
            executors.append(made[0])
        else:
            executors.append(executors[-1] if executors else 0)
    return tuple(executors)
