"""The plans of a session: looked up by all that they rest on, kept while inputs grow, made when there is none."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from remora.capture.recorder import Segment
from remora.capture.value import OUT_BITS, OUT_MASK
from remora.ir.annotated import Outside
from remora.plan.planner import Planner
from remora.plan.policies.policy import ROOM
from remora.plan.situation import Situation
from remora.session.graphs import dropout_holes, graph_of, module_values, random_rows
from remora.session.growth import grown
from remora.session.holdings import Holdings, Key, Place
from remora.session.plans import Plan, Use, plan_of
from remora.session.wirings import shared_memories

MAX_PLANS = 512  # the oldest goes first, and is made again if it is needed


class KnownPlans:
    """Plans by template, size and whereabouts.

    anew: each size has a plan of its own, and nothing is passed over: an estimate looks at every value.

    Args:
        situation: for values that lie so, and rows that draw random numbers. forgot: told when plans have gone.
    """

    def __init__(
        self,
        planner: Planner,
        holdings: Holdings,
        situation: Callable[[Sequence[Place], tuple[int, ...]], Situation],
        forgot: Callable[[], None],
    ) -> None:
        self.anew = False
        self.made = 0
        self._planner, self._policy, self._holdings = planner, planner.policy, holdings
        self._situation, self._forgot = situation, forgot
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._captured = itertools.count(-1, -1)
        self._gates: dict[int, tuple[int, ...]] = {}  # by a template's index
        self._exact: set[bytes] = set()  # templates with plans that hold for some sizes and numbers alone

    def gates(self, segment: Segment) -> tuple[int, ...]:
        """Holes on whose value it depends whether random numbers are drawn."""
        captured = segment.captured
        found = self._gates.get(captured.index)
        if found is None:
            found = self._gates[captured.index] = dropout_holes(captured.template)
        return found

    def use(
        self,
        segment: Segment,
        keys: list[Key],
        places: list[Place],
        graphs: int,
        gates: tuple[int, ...],
        wanted: Sequence[int],
    ) -> Use:
        """The plan for a segment as values lie now: from its template, a size, whose memory is where and shared with
        whom, what lives on, whether and where random numbers are drawn, and the policy's turn.

        Args:
            graphs: how many ran before, with it. wanted: of its outputs, those whose bytes the client asks for next.

        Raises:
            PlanError: there is none.
        """
        nbytes = sum([place.nbytes for place in places])
        storages = [place.storage for place in places]
        numbers = [storage.number for storage in storages]
        now = self._situation((), ())
        template = segment.captured.template.id
        alike = (
            template,
            tuple([storage.owner for storage in storages]),
            tuple([place.homes for place in places]),
            shared_memories(numbers),
            segment.keep,
            tuple([segment.holes[hole] != 0 for hole in gates]),
            self._policy.turn(now) if self._policy.turns else 0,
            now.generators,
            _sizes(segment, places) if template in self._exact else (),
        )
        plan = self._plans.get((nbytes.bit_length(), *alike))
        runs = plan.ran.count if plan is not None and plan.is_due else 0
        if plan is None or runs or not _fits(plan, now):
            plan = None if runs else self._grown(alike, nbytes, now)
            if plan is None:
                slots = [self._holdings.outside(key, graphs) for key in keys]
                plan = self._make(segment, slots, places, wanted, nbytes, runs)
            if plan.exact and template not in self._exact:
                self._exact.add(template)
                alike = (*alike[:-1], _sizes(segment, places))
            if len(self._plans) >= MAX_PLANS:
                self._forget([next(iter(self._plans))])
            self._plans[plan.bucket, *alike] = plan
        return Use(plan, tuple(numbers))

    def _grown(self, alike: tuple[object, ...], nbytes: int, now: Situation) -> Plan | None:
        """The plan for inputs of about half the size, if it will do. alike: the rest of its key."""
        plan = self._plans.get((nbytes.bit_length() - 1, *alike))
        if plan is None or self.anew:
            return None
        return grown(plan, nbytes, self._planner.pool, now.held_nbytes, now.limits_nbytes)

    def _forget(self, outdated: Sequence[tuple[object, ...]]) -> None:
        """They are made again when they are needed, with what is known then."""
        for key in outdated:
            del self._plans[key]
        if outdated:
            self._forgot()

    def _make(
        self,
        segment: Segment,
        slots: Sequence[Outside],
        places: Sequence[Place],
        wanted: Sequence[int],
        nbytes: int,
        runs: int,
    ) -> Plan:
        """runs: of the plan before it, which may have earned what a pass has to copy."""
        started_s = time.perf_counter()
        graph = graph_of(segment, slots, frozenset((code >> OUT_BITS, code & OUT_MASK) for code in wanted))
        situation = replace(self._situation(places, random_rows(graph)), runs=runs)
        knew = self._planner.memory
        decision = self._planner.decide(graph, situation)
        if self._planner.memory is not knew:
            self._forget(
                [key for key, plan in self._plans.items() if self._planner.is_outdated(plan.captured_graph)]
            )
        for module, value in module_values(segment.captured):
            self._holdings.called((value.segment, value.code), module)
        self.made += 1
        return plan_of(
            decision,
            segment.captured,
            segment.keep,
            nbytes,
            situation.homes,
            lambda: next(self._captured),
            time.perf_counter() - started_s,
        )


def _sizes(segment: Segment, places: Sequence[Place]) -> tuple[object, ...]:
    """What an exact plan rests on beside all else."""
    numbers = tuple([number for number in segment.holes if type(number) is int])
    return numbers, tuple([place.facts.shape for place in places])


def _fits(plan: Plan, now: Situation) -> bool:
    """Whether executors still have room for what they have to get before it runs."""
    return all(
        now.held_nbytes[executor] + nbytes <= now.limits_nbytes[executor] * ROOM
        for executor, nbytes in plan.gets_nbytes
    )
