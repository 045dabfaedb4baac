"""Predicted seconds of a placed graph: its parts on their executors, with the transfers between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from remora.ir.annotated import Graph
from remora.ir.node import Ref
from remora.plan.devices import Pool
from remora.plan.duration import Duration, Estimate
from remora.plan.estimate import Costs
from remora.plan.parts import Part, Parts
from remora.plan.schedule import Need, Piece, Schedule, schedule

Storage = tuple[str, int, int]


@dataclass(frozen=True)
class Placed:
    """estimate: of the whole, as long as the schedule takes. parts: of each part by itself, without transfers."""

    estimate: Estimate
    parts: tuple[Estimate, ...]
    schedule: Schedule


def predict(
    graph: Graph,
    split: Parts,
    costs: Costs,
    pool: Pool,
    correct: Callable[[Part, Duration], Duration] | None = None,
) -> Placed:
    """Predicts a graph that was split into parts (plan/parts.py).

    costs: of that graph on the pool's devices. correct: what a record knows of a part (plan/record.py).
    """
    needed = needs(graph, split)
    homes = {row: number for number, part in enumerate(split.parts) for row in part.rows}
    replies: dict[int, int] = {}
    for row, out in graph.wants:
        facts = graph.rows[row].outs[out]
        replies[homes[row]] = replies.get(homes[row], 0) + (facts.nbytes if facts is not None else 0)
    pieces, estimates = [], []
    for number, part in enumerate(split.parts):
        found = costs.part(part.executor, part.rows)
        took = found.duration if correct is None else correct(part, found.duration)
        pieces.append(Piece(part.executor, took, needed[number], replies.get(number)))
        estimates.append(Estimate(found.flops, found.bytes_read, found.bytes_written, 0, took))
    times = schedule(pieces, pool)
    whole = Estimate(
        sum(one.flops for one in estimates),
        sum(one.bytes_read for one in estimates),
        sum(one.bytes_written for one in estimates),
        times.wire_nbytes,
        times.duration,
    )
    return Placed(whole, tuple(estimates), times)


def needs(graph: Graph, split: Parts) -> list[tuple[Need, ...]]:
    """What has to travel to each part. Of views of one memory that go together, the largest counts."""
    made = {row: number for number, part in enumerate(split.parts) for row in part.rows}
    found: list[dict[tuple[Storage, int], Need]] = [{} for _ in split.parts]
    for transfer in split.transfers:
        facts = graph.facts(transfer.value)
        nbytes = facts.nbytes if facts is not None else 0
        key = graph.storage(transfer.value), transfer.source
        known = found[transfer.before].get(key)
        maker = made[transfer.value.row] if isinstance(transfer.value, Ref) else None
        if known is not None:
            nbytes = max(nbytes, known.nbytes)
            maker = known.piece if maker is None else max(maker, known.piece or 0)
        found[transfer.before][key] = Need(transfer.source, nbytes, maker)
    return [tuple(by_storage.values()) for by_storage in found]
