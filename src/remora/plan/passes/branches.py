"""The pass that makes independent branches at once: the towers of a model whose results meet in a later row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from remora.ir.annotated import Graph
from remora.ir.node import Ref
from remora.plan.estimate import Costs
from remora.plan.parts import placed
from remora.plan.passes.crossing import crossing
from remora.plan.passes.frame import Pass, Proposal
from remora.plan.passes.worth import goes_forward_for
from remora.plan.policies.semantic import DOUBT
from remora.plan.rewrite import Rewrite
from remora.plan.situation import Situation

LEAST_GAIN_S = 1e-3  # what is gained by less, two messages between executors take


@dataclass(frozen=True)
class Fork:
    """Branches, each as its rows in order, and the row that joins them; None: each ends in what lives on.

    A branch needs nothing that another one makes; what several need is in none.
    """

    join: int | None
    branches: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Dealt:
    """executors: of each branch of the fork. gain_s: of the rows alone, without what travels."""

    fork: Fork
    executors: tuple[int, ...]
    gain_s: float

    @property
    def rows(self) -> set[int]:
        return {row for branch in self.fork.branches for row in branch}


class Branches(Pass):
    """A forward pass with rows that need nothing of each other until a later one joins them: each branch on an executor
    of its own, by a copy of its weights. What joins them, and what they have in common, stays where it was."""

    name: ClassVar[str] = "branches"

    def propose(self, now: Rewrite, situation: Situation, costs: Costs) -> Iterator[Proposal]:
        graph = now.graph
        if not goes_forward_for(LEAST_GAIN_S, graph, situation, costs):
            return
        least_s = max(LEAST_GAIN_S, DOUBT * costs.part(graph.executors[0]).duration.seconds)
        dealt = [
            one
            for home, fork in _together(graph, costs)
            for one in _dealt(fork, home, costs, situation.n_executors)
            if one.gain_s > least_s
        ]
        for one in dealt:
            yield _proposal(now, [one])
        apart: list[_Dealt] = []
        for one in sorted(dealt, key=lambda one: -one.gain_s):
            if all(one.rows.isdisjoint(other.rows) for other in apart):
                apart.append(one)
        if len(apart) > 1:
            yield _proposal(now, apart)


def _together(graph: Graph, costs: Costs) -> Iterator[tuple[int, Fork]]:
    """The forks whose branches all run on one executor, and that: others run at once already, or were cut for room."""
    for fork in forks(graph, costs):
        homes = {graph.executors[row] for branch in fork.branches for row in branch}
        if len(homes) == 1:
            yield homes.pop(), fork


def forks(graph: Graph, costs: Costs) -> Iterator[Fork]:
    """Where a graph has branches of which at least two take their time, by the row that joins them."""
    seconds = [costs.row_s(executor, row) for row, executor in enumerate(graph.executors)]
    before: list[int] = []  # of each row, itself and what it needs: a bit for each row
    for number, row in enumerate(graph.rows):
        mask, ends = 1 << number, {arg.row for arg in row.tensors() if isinstance(arg, Ref)}
        for end in ends:
            mask |= before[end]
        before.append(mask)
        yield from _forked(number, ends, before, seconds)
    yield from _forked(None, {row for row, _ in graph.keep | graph.wants}, before, seconds)


def _forked(
    join: int | None, ends: set[int], before: Sequence[int], seconds: Sequence[float]
) -> Iterator[Fork]:
    """The fork whose branches end in these rows, if there is one."""
    if len(ends) < 2:
        return
    some, every = 0, -1
    for end in ends:
        some, every = some | before[end], every & before[end]
    differ = some & ~every
    if _sum(differ, seconds) < 2.0 * LEAST_GAIN_S:
        return
    groups = _apart([before[end] & differ for end in ends], seconds)
    branches = []
    for at, group in enumerate(groups):
        for other in groups[:at] + groups[at + 1 :]:
            group &= ~other
        if _sum(group, seconds) > LEAST_GAIN_S:
            branches.append(tuple(_bits(group)))
    if len(branches) > 1:
        yield Fork(join, tuple(sorted(branches)))


def _apart(masks: Iterable[int], seconds: Sequence[float]) -> list[int]:
    """Sets of rows put together where most of what one takes is in another one."""
    groups: list[int] = []
    for took, mask in sorted(((_sum(mask, seconds), mask) for mask in masks), reverse=True):
        for at, group in enumerate(groups):
            if 2.0 * _sum(mask & group, seconds) >= took:
                groups[at] |= mask
                break
        else:
            groups.append(mask)
    return groups


def _sum(mask: int, seconds: Sequence[float]) -> float:
    return sum(seconds[row] for row in _bits(mask))


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _dealt(fork: Fork, home: int, costs: Costs, n: int) -> Iterator[_Dealt]:
    """Branches that are all on `home`, dealt out, the longest first, each to where it is done first. The first that
    the program runs, or the longest, stays: what led to the one may be at home, of the other there is most to copy."""
    took = [[sum(costs.row_s(at, row) for row in branch) for at in range(n)] for branch in fork.branches]
    longest = sorted(range(len(took)), key=lambda branch: -took[branch][home])
    for stays in dict.fromkeys((longest[0], 0)):
        where, ends_s = [home] * len(took), [0.0] * n
        ends_s[home] = took[stays][home]
        for branch in longest:
            if branch != stays:
                best = min(range(n), key=lambda at: (ends_s[at] + took[branch][at], at != home))
                ends_s[best] += took[branch][best]
                where[branch] = best
        yield _Dealt(fork, tuple(where), sum(each[home] for each in took) - max(ends_s))


def _proposal(now: Rewrite, dealt: Sequence[_Dealt]) -> Proposal:
    moved = {
        row: executor
        for one in dealt
        for branch, executor in zip(one.fork.branches, one.executors, strict=True)
        for row in branch
    }
    homes = now.graph.executors
    for number, row in enumerate(now.graph.rows):  # what is made of one branch alone goes with it
        refs = [arg.row for arg in row.tensors() if isinstance(arg, Ref)]
        made = {moved.get(ref) for ref in refs}
        if number not in moved and len(made) == 1 and homes[number] == homes[refs[0]]:
            executor = made.pop()
            if executor is not None:
                moved[number] = executor
    executors = tuple(moved.get(row, executor) for row, executor in enumerate(homes))
    graph = placed(now.graph, executors)
    made_apart = replace(now, graph=graph, cuts=crossing(graph.rows, executors))
    return Proposal(made_apart, "; ".join(_said(now.graph, one) for one in dealt))


def _said(graph: Graph, dealt: _Dealt) -> str:
    branches = []
    for rows, executor in zip(dealt.fork.branches, dealt.executors, strict=True):
        kinds = Counter(kind for row in rows if (kind := graph.rows[row].meaning.modality) is not None)
        modality = f"{kinds.most_common(1)[0][0]}, " if kinds else ""
        branches.append(f"{modality}rows {rows[0]} to {rows[-1]}, on executor {executor}")
    join = dealt.fork.join
    end = "in what lives on" if join is None else f"in row {join} ({graph.rows[join].node.op})"
    return f"branches that meet {end}: " + "; ".join(branches)
