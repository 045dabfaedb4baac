"""What a pass is, and when what it proposes is taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from remora.ir.annotated import Stage
from remora.ir.graph import MAX_ROWS
from remora.ir.stages import enter
from remora.plan.duration import Duration, difference
from remora.plan.estimate import Costs, costs
from remora.plan.legal import Legal, legalised
from remora.plan.memory import need
from remora.plan.parts import Parts, placed, split
from remora.plan.passes.separable import STAYS
from remora.plan.placed import Placed, predict
from remora.plan.policies.semantic import DOUBT
from remora.plan.rewrite import Rewrite
from remora.plan.situation import Situation


@dataclass(frozen=True)
class Proposal:
    """A rewrite, its rows on the executors where the pass wants them, and what it does in a few words."""

    rewrite: Rewrite
    what: str


class Pass(ABC):
    """Stateless, and pure: an annotated graph with an executor for each row in, others that compute the same out."""

    name: ClassVar[str]

    @abstractmethod
    def propose(self, now: Rewrite, situation: Situation, costs: Costs) -> Iterator[Proposal]:
        """Ways to make what `now.graph` makes. Nothing is proposed where that cannot be.

        Args:
            costs: of its rows on each executor's device.
        """


@dataclass(frozen=True)
class Laid:
    """A rewrite as it would run. costs: of its rows. predicted: of everything. settled: without what goes to an
    executor once and stays there, such as weights."""

    rewrite: Rewrite
    legal: Legal
    parts: Parts
    costs: Costs
    predicted: Placed
    settled: Duration


@dataclass(frozen=True)
class PassChoice:
    """What a pass did to a plan, or would have done. without, predicted: the plan without and with it, once settled.
    from_run: the run of the plan from which on it pays, because something has to be copied first; None: it does not."""

    name: str
    what: str
    taken: bool
    reason: str
    without: Duration
    predicted: Duration
    from_run: int | None = None


def lay(rewrite: Rewrite, situation: Situation) -> Laid:
    """Keeps bonds, splits, predicts.

    Raises:
        PlanError: it breaks a stage rule.
    """
    drawn = set(situation.random)
    random = tuple(at for at, captured in enumerate(rewrite.rows) if captured in drawn)
    legal = legalised(rewrite.graph, rewrite.graph.executors, situation, random)
    graph = enter(placed(rewrite.graph, legal.executors), Stage.PLACED)
    homes, owners = legal.whereabouts(graph, situation)
    parts = split(graph, homes, owners, rewrite.cuts)
    table = costs(graph, situation.pool.devices)
    predicted = predict(graph, parts, table, situation.pool)
    everywhere = frozenset(range(situation.n_executors))
    stayed = tuple(
        everywhere if slot.meaning.residency in STAYS else home
        for slot, home in zip(graph.slots, homes, strict=True)
    )
    settled = predicted
    if stayed != homes:
        settled = predict(graph, split(graph, stayed, owners, rewrite.cuts), table, situation.pool)
    return Laid(replace(rewrite, graph=graph), legal, parts, table, predicted, settled.estimate.duration)


def improved(laid: Laid, passes: Sequence[Pass], situation: Situation) -> tuple[Laid, tuple[PassChoice, ...]]:
    """Applies passes in order: of what each proposes the fastest, if it is faster by more than the model's own error
    and what has to be copied for it is earned by the runs so far."""
    choices: list[PassChoice] = []
    for one in passes:
        options = [
            (option, proposal.what)
            for proposal in one.propose(laid.rewrite, situation, laid.costs)
            if _fits(option := lay(proposal.rewrite, situation), situation)
        ]
        if not options:
            continue
        best, what = min(options, key=lambda option: option[0].settled.seconds)
        choice = _judged(one.name, what, laid, best, situation.runs)
        choices.append(choice)
        if choice.taken:
            laid = best
    return laid, tuple(choices)


def _judged(name: str, what: str, without: Laid, laid: Laid, runs: int) -> PassChoice:
    gain = difference(without.settled, laid.settled)
    least_s = (
        gain.sigma_s + DOUBT * laid.settled.seconds
    )  # once, for state stays where it is whatever comes of it
    before, after = without.settled, laid.settled
    if gain.seconds <= least_s:
        reason = f"predicted to gain {gain}, which is not clear: {least_s * 1e3:.3g} ms would be"
        return PassChoice(name, what, False, reason, before, after)
    reason = f"predicted to gain {gain} of {before.seconds * 1e3:.3g} ms"
    copies_s = (laid.predicted.estimate.duration.seconds - after.seconds) - (
        without.predicted.estimate.duration.seconds - before.seconds
    )
    from_run = max(0, int(copies_s / gain.seconds)) if gain.seconds > 0.0 else 0
    if runs < from_run:
        from_run -= runs
        reason += f", and to copy for {copies_s * 1e3:.3g} ms first: from run {from_run} on"
        return PassChoice(name, what, False, reason, before, after, from_run)
    return PassChoice(name, what, True, reason, before, after, from_run)


def _fits(laid: Laid, situation: Situation) -> bool:
    """Whether every executor has room for what it gets and makes, and parts are as short as templates may be."""
    graph = laid.rewrite.graph
    for executor in range(situation.n_executors):
        rows = [row for row, at in enumerate(graph.executors) if at == executor]
        there = [executor in home for home in situation.homes]
        needed = need(graph, rows, there, situation.held_nbytes[executor])
        if needed.peak_nbytes > situation.limits_nbytes[executor]:
            return False
    return all(len(part.rows) <= MAX_ROWS for part in laid.parts.parts)
