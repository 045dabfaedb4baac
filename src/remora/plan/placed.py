"""Predicted seconds of a placed graph: its parts on their executors, with the transfers between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from remora.ir.annotated import Graph
from remora.ir.node import Ref, Slot
from remora.plan.devices import CLIENT, Pool
from remora.plan.duration import Duration, Estimate
from remora.plan.estimate import Costs
from remora.plan.schedule import Need, Piece, Schedule, schedule

Homes = Sequence[frozenset[int]]
"""By slot: the executors that hold it; empty if it is still with the client."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that run as one template: those of one executor at one level. level: the longest chain of changes of
    executor on the way there."""

    executor: int
    level: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Placed:
    """estimate: of the whole, as long as the schedule takes. parts, estimates and pieces: in one order, in which
    they can run."""

    estimate: Estimate
    schedule: Schedule
    parts: tuple[Part, ...]
    estimates: tuple[Estimate, ...]
    pieces: tuple[Piece, ...]


def parts_of(graph: Graph, executors: Sequence[int]) -> tuple[Part, ...]:
    """Rows by level and executor; by level first, so that a part reads only parts before it."""
    levels: list[int] = []
    rows: dict[tuple[int, int], list[int]] = {}
    for number, row in enumerate(graph.rows):
        here, level = executors[number], 0
        for arg in row.tensors():
            if isinstance(arg, Ref):
                level = max(level, levels[arg.row] + (executors[arg.row] != here))
        levels.append(level)
        rows.setdefault((level, here), []).append(number)
    return tuple(Part(executor, level, tuple(found)) for (level, executor), found in sorted(rows.items()))


def place(
    graph: Graph,
    executors: Sequence[int],
    costs: Costs,
    pool: Pool,
    homes: Homes,
    correct: Callable[[Part, Duration], Duration] | None = None,
) -> Placed:
    """Predicts a graph whose rows run on `executors`.

    homes: where the slots are before. correct: what a record knows of a part (plan/record.py).
    """
    parts = parts_of(graph, executors)
    where = {row: number for number, part in enumerate(parts) for row in part.rows}
    held = _Held(graph, pool, homes, executors, where)
    pieces, estimates = [], []
    for number, part in enumerate(parts):
        found = costs.part(part.executor, part.rows)
        duration = found.duration if correct is None else correct(part, found.duration)
        replies = [graph.rows[row].outs[out] for row, out in sorted(graph.wants) if where[row] == number]
        nbytes = sum(facts.nbytes for facts in replies if facts is not None) if replies else None
        pieces.append(Piece(part.executor, duration, held.needs(part), nbytes))
        estimates.append(Estimate(found.flops, found.bytes_read, found.bytes_written, 0, duration))
    times = schedule(pieces, pool)
    whole = Estimate(
        sum(one.flops for one in estimates),
        sum(one.bytes_read for one in estimates),
        sum(one.bytes_written for one in estimates),
        times.wire_nbytes,
        times.duration,
    )
    return Placed(whole, times, parts, tuple(estimates), tuple(pieces))


class _Held:
    """Which executors have which values: what has travelled once is there from then on, unless it is written."""

    def __init__(
        self, graph: Graph, pool: Pool, homes: Homes, executors: Sequence[int], where: dict[int, int]
    ) -> None:
        self.graph, self.pool, self.homes, self.executors, self.where = graph, pool, homes, executors, where
        self.sent: set[tuple[tuple[str, int, int], int]] = set()

    def needs(self, part: Part) -> tuple[Need, ...]:
        """What has to travel to a part: each storage once, as much of it as the largest value read there covers."""
        largest: dict[tuple[str, int, int], Need] = {}
        for row in part.rows:
            for arg in self.graph.rows[row].tensors():
                storage = self.graph.storage(arg)
                facts = self.graph.facts(arg)
                if facts is None or (storage, part.executor) in self.sent:
                    continue
                need = self._need(arg, part.executor, facts.nbytes)
                if need is not None and (storage not in largest or need.nbytes > largest[storage].nbytes):
                    largest[storage] = need
        for storage in largest:
            self.sent.add((storage, part.executor))
        return tuple(largest.values())

    def _need(self, arg: Ref | Slot, target: int, nbytes: int) -> Need | None:
        if isinstance(arg, Ref):
            source = self.executors[arg.row]
            return None if source == target else Need(source, nbytes, self.where[arg.row])
        homes = self.homes[arg.index]
        if target in homes:
            return None
        if not homes:
            return Need(CLIENT, nbytes)
        nearest = min(sorted(homes), key=lambda home: self.pool.link(home, target).seconds(nbytes))
        return Need(nearest, nbytes)
