"""When parts of a placed graph run: each as soon as its executor is free and its inputs have arrived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from remora.plan.devices import Pool
from remora.plan.duration import Duration, total


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a piece waits for: made by an earlier piece, or held before by an executor (`piece` None)."""

    source: int
    nbytes: int
    piece: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one executor that run as one template. replies_nbytes: what goes back to the client; None: nothing."""

    executor: int
    duration: Duration
    needs: tuple[Need, ...] = ()
    replies_nbytes: int | None = None


@dataclass(frozen=True, slots=True)
class Transfer:
    """One message from an executor to another, for one piece."""

    source: int
    target: int
    nbytes: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Schedule:
    """starts_s, ends_s: of each piece. duration: until the last piece, or the last reply at the client, is done;
    its error is that of what lies on the longest chain."""

    starts_s: tuple[float, ...]
    ends_s: tuple[float, ...]
    transfers: tuple[Transfer, ...]
    duration: Duration
    wire_nbytes: int


@dataclass
class _Clock:
    """When everything is free again, and by which chain of durations that came about."""

    executors: dict[int, float] = field(default_factory=dict)
    links: dict[tuple[int, int], float] = field(default_factory=dict)
    chains: dict[int, list[Duration]] = field(
        default_factory=dict
    )  # that ended with the executor's last piece


def schedule(pieces: Sequence[Piece], pool: Pool) -> Schedule:
    """Lists pieces in their order on each executor; what one piece makes for another one goes together, as soon as it
    is there.

    Pieces come in an order in which they can run: a need names an earlier piece.
    """
    clock = _Clock()
    starts: list[float] = []
    ends: list[float] = []
    chains: list[list[Duration]] = []
    transfers: list[Transfer] = []
    finish_s, longest = 0.0, list[Duration]()
    for piece in pieces:
        start_s = clock.executors.get(piece.executor, 0.0)
        chain = clock.chains.get(piece.executor, [])
        for source, nbytes, ready_s, before in _arrivals(piece, ends, chains):
            sent = _send(clock, pool, source, piece.executor, nbytes, ready_s)
            transfers.append(sent)
            if sent.end_s > start_s:
                link = pool.link(source, piece.executor)
                took = link.duration(nbytes, f"link {source} to {piece.executor}")
                start_s, chain = sent.end_s, [*before, took]
        end_s = start_s + piece.duration.seconds
        chain = [*chain, piece.duration]
        clock.executors[piece.executor], clock.chains[piece.executor] = end_s, chain
        starts.append(start_s)
        ends.append(end_s)
        chains.append(chain)
        done_s, whole = end_s, chain
        if piece.replies_nbytes is not None and piece.executor < len(pool.client):
            reply = pool.client[piece.executor].duration(piece.replies_nbytes, f"client {piece.executor}")
            done_s, whole = end_s + reply.seconds, [*chain, reply]
        if done_s >= finish_s:
            finish_s, longest = done_s, whole
    errors = total(longest).errors
    wire_nbytes = sum(sent.nbytes for sent in transfers) + sum(piece.replies_nbytes or 0 for piece in pieces)
    return Schedule(tuple(starts), tuple(ends), tuple(transfers), Duration(finish_s, errors), wire_nbytes)


def _arrivals(
    piece: Piece, ends: list[float], chains: list[list[Duration]]
) -> list[tuple[int, int, float, list[Duration]]]:
    """What comes from other executors, one message for each piece that makes some of it, and one for what was there:
    source, bytes, when it is ready, and by which chain."""
    found: dict[tuple[int, int | None], int] = {}
    for need in piece.needs:
        if need.source != piece.executor:
            key = need.source, need.piece
            found[key] = found.get(key, 0) + need.nbytes
    arrivals = [
        (source, nbytes, 0.0, list[Duration]())
        if maker is None
        else (source, nbytes, ends[maker], chains[maker])
        for (source, maker), nbytes in found.items()
    ]
    return sorted(arrivals, key=lambda arrival: arrival[2])


def _send(clock: _Clock, pool: Pool, source: int, target: int, nbytes: int, ready_s: float) -> Transfer:
    link = pool.link(source, target)
    start_s = max(ready_s, clock.links.get((source, target), 0.0))
    clock.links[source, target] = start_s + link.busy_s(nbytes)
    return Transfer(source, target, nbytes, start_s, start_s + link.seconds(nbytes))
