"""What a policy knows beside the graph: where values are, and how fast, full and busy the executors are."""

from __future__ import annotations

from dataclasses import dataclass

from remora.plan.devices import Pool

UNMEASURED = Pool(())


@dataclass(frozen=True)
class Situation:
    """The pool at the moment when a graph is to be placed.

    owners: for each slot the executor where its memory is, or None for an upload that is on none yet.
    homes: for each slot all executors that hold its value, the owner among them.
    held_nbytes, limits_nbytes, queued: per executor: bytes of values, what the grant allows, segments on their way.
    waiting_nbytes: of uploads that no executor has yet, whether the graph reads them or not.
    program: how many programs (from sync to sync) came before. generators: where random numbers
    are drawn; None: all executors' have the same state, so anywhere.
    random: rows of the graph that draw some. pool: what was measured of the executors and their links. runs: of the
    graph so far, as it was planned last.
    """

    owners: tuple[int | None, ...]
    homes: tuple[frozenset[int], ...]
    held_nbytes: tuple[int, ...]
    limits_nbytes: tuple[int, ...]
    queued: tuple[int, ...]
    program: int = 0
    waiting_nbytes: int = 0
    generators: int | None = None
    random: tuple[int, ...] = ()
    pool: Pool = UNMEASURED
    runs: int = 0

    @property
    def n_executors(self) -> int:
        return len(self.held_nbytes)

    def rooms_nbytes(self, share: float) -> list[int]:
        """Per executor, what may still be added until that share of its memory is full; below 0: nothing."""
        return [
            int(limit * share) - held
            for held, limit in zip(self.held_nbytes, self.limits_nbytes, strict=True)
        ]
