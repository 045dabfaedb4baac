"""Plans whose inputs grow: kept or made anew, by memory and by what the policy could choose."""

from __future__ import annotations

import itertools

import pytest
from test_plan_policies import LAYERS, MB, pool, situation

from remora.capture.recorder import CapturedTemplate
from remora.ir.annotated_text import parse_graph
from remora.ir.graph import Template
from remora.plan.planner import Planner
from remora.plan.policies import policy_named
from remora.session.growth import grown
from remora.session.plans import Plan, plan_of

LIMIT = 1 << 30


def planned(owners, rates=(100, 100), policy: str = "semantic") -> Plan:
    """Of inputs of 4 MB, of which 2 MB are a cache."""
    graph, at = parse_graph(LAYERS), situation(owners, rates)
    decision = Planner(policy_named(policy), pool(*rates)).decide(graph, at)
    template = Template(tuple(row.node for row in graph.rows))
    captured = CapturedTemplate(template, 0, (None,) * len(graph.rows))
    number = itertools.count(-1, -1).__next__
    return plan_of(decision, captured, (3, 0), 4 * MB, at.homes, number, 0.0)


def kept(plan: Plan, nbytes: int, rates=(100, 100), held=(4 * MB, 0), limit=LIMIT) -> Plan | None:
    return grown(plan, nbytes, pool(*rates), held, (limit, limit))


def test_a_plan_is_kept_for_the_next_size_and_predicts_longer():
    plan = planned((0,) * 4)
    after = kept(plan, 8 * MB)
    assert after is not None
    assert (after.parts, after.captured) == (plan.parts, plan.captured)
    assert (plan.bucket, after.bucket, after.nbytes) == (23, 24, 8 * MB)
    assert after.ran.count == 0
    assert plan.whole.seconds < after.whole.seconds <= 2 * plan.whole.seconds
    assert after.whole.sigma_s > plan.whole.sigma_s
    assert after.predicted[0].seconds > plan.predicted[0].seconds
    (makes,) = after.makes_nbytes
    assert makes == (0, 2 * plan.makes_nbytes[0][1])
    again = kept(after, 16 * MB)
    assert again is not None
    assert again.bucket == 25


@pytest.mark.parametrize(("limit", "fits"), [(9 * MB, True), (8 * MB, False)])
def test_it_is_made_anew_where_memory_would_not_last(limit, fits):
    """4 MB are held, 2 MB are made, and twice that then."""
    assert (kept(planned((0,) * 4), 8 * MB, limit=limit) is not None) is fits


@pytest.mark.parametrize(("limit", "fits"), [(18 * MB, True), (16 * MB, False)])
def test_what_has_to_get_there_leaves_room(limit, fits):
    """4 MB are held, 6 MB have to come and 4 MB are made: 14 of 16 are more than uploads may fill."""
    plan = planned((None, None, None, 0))
    assert dict(plan.gets_nbytes).keys() == {0}
    held = (4 * MB + 6 * MB - 2 * dict(plan.gets_nbytes)[0], 0)
    assert (kept(plan, 8 * MB, held=held, limit=limit) is not None) is fits


def test_it_is_made_anew_where_a_clearly_faster_device_could_have_been_chosen():
    """Moving 4 MB at 10 MB/s took longer than staying; with many times the bytes to read it may not."""
    rates = (30, 100)
    owners = (0,) * 4
    plan = planned(owners, rates)
    assert {part.executor for part in plan.parts} == {0}
    assert plan.wish.alternative_took is not None
    assert kept(plan, 64 * MB, rates) is None
    assert kept(planned(owners, (95, 100)), 64 * MB, (95, 100)) is not None


def test_what_no_alternative_was_considered_for_is_kept():
    assert kept(planned((0,) * 4, (30, 100), "data_aware"), 64 * MB, (30, 100)) is not None
