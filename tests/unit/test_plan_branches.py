"""Branches: a graph as text in, where each row runs out; and what is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st
from test_plan_passes import given, pool, situation

from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.annotated_text import parse_graph
from remora.ir.node import Items, Node, Ref, Slot
from remora.plan.estimate import costs
from remora.plan.passes import improved, lay
from remora.plan.passes.branches import Branches, forks
from remora.plan.rewrite import unchanged
from remora.plan.situation import Situation

HERE = ((0,), (0,), (0,), (0,))
EVERYWHERE = ((0,), (0,), (0, 1), (0, 1))

# A row that both towers read, two towers of two products, one with a row beside it that lives on, and their fusion.
TOWERS = """graph ANNOTATED holes=[1, 1] keep=%5 wants=%7
$0 = float32[512,512] storage=0 input "input: test"
$1 = float32[512,512] storage=1 input "input: test"
$2 = float32[512,512] storage=2 weight "weight: test"
$3 = float32[512,512] storage=3 weight "weight: test"
%0 = aten.mul.Tensor($0, $1) | float32[512,512] forward "phase: test"
%1 = aten.mm.default(%0, $2) | float32[512,512] forward vision "phase: test"
%2 = aten.mm.default(%1, $2) | float32[512,512] forward vision "phase: test"
%3 = aten.mm.default(%0, $3) | float32[512,512] forward text "phase: test"
%4 = aten.mm.default(%3, $3) | float32[512,512] forward text "phase: test"
%5 = aten.sum.dim_IntList(%4, [int]) | float32[512] forward "phase: test"
%6 = aten.cat.default([%2, %4], int) | float32[512,1024] forward "phase: test"
%7 = aten.abs.default(%6) | float32[512,1024] forward "phase: test"
"""


def proposed(text: str = TOWERS, homes=HERE, executors=None, **more):
    at = situation(homes, **more)
    now = given(text, at, executors)
    return list(Branches().propose(now, at, costs(now.graph, at.pool.devices)))


def test_each_branch_has_an_executor_and_the_rest_stays():
    [proposal] = proposed()
    assert proposal.rewrite.graph.executors == (0, 0, 0, 1, 1, 1, 0, 0)
    assert proposal.what == (
        "branches that meet in row 6 (aten.cat.default): vision, rows 1 to 2, on executor 0; "
        "text, rows 3 to 4, on executor 1"
    )
    assert not proposal.rewrite.exact  # no size is fixed: the same rows run, elsewhere


def test_what_branches_share_sets_out_before_any_of_them_runs():
    [proposal] = proposed()
    parts = lay(proposal.rewrite, situation(HERE)).parts.parts
    assert [(part.executor, part.rows) for part in parts] == [
        (0, (0,)),
        (0, (1, 2)),
        (1, (3, 4)),
        (0, (6, 7)),
        (1, (5,)),  # the fusion does not wait for it
    ]


def test_the_longest_branch_may_stay_as_well_as_the_first():
    wide = TOWERS.replace("$3 = float32[512,512]", "$3 = float32[512,2048]").replace(
        "%3 = aten.mm.default(%0, $3) | float32[512,512]", "%3 = aten.mm.default(%0, $3) | float32[512,2048]"
    )
    stays = [proposal.rewrite.graph.executors[1:5] for proposal in proposed(wide)]
    assert stays == [(1, 1, 0, 0), (0, 0, 1, 1)]


def test_branches_that_nothing_joins_end_in_what_lives_on():
    text = "\n".join(TOWERS.replace("keep=%5 wants=%7", "keep=%5 wants=%2").splitlines()[:-2]) + "\n"
    found = {
        proposal.what: proposal.rewrite.graph.executors
        for proposal in proposed(text.replace("holes=[1, 1]", "holes=[1]"))
    }
    what = "branches that meet in what lives on: "
    assert found == {
        what + "vision, rows 1 to 2, on executor 0; text, rows 3 to 5, on executor 1": (0, 0, 0, 1, 1, 1),
        what + "vision, rows 1 to 2, on executor 1; text, rows 3 to 5, on executor 0": (0, 1, 1, 0, 0, 0),
    }


def test_three_branches_over_two_executors_are_done_at_the_same_time():
    text = TOWERS.replace(
        '%6 = aten.cat.default([%2, %4], int) | float32[512,1024] forward "phase: test"\n'
        '%7 = aten.abs.default(%6) | float32[512,1024] forward "phase: test"\n',
        '%6 = aten.mm.default(%0, $1) | float32[512,512] forward "phase: test"\n'
        '%7 = aten.cat.default([%2, %4, %6], int) | float32[512,1536] forward "phase: test"\n',
    )
    [proposal] = proposed(text)
    assert proposal.rewrite.graph.executors == (0, 0, 0, 1, 1, 1, 0, 0)
    [three] = proposed(text, n=3)
    assert three.rewrite.graph.executors == (0, 0, 0, 1, 1, 1, 2, 0)


@pytest.mark.parametrize(
    "change",
    [
        ("forward", "decode"),  # has other sizes each time, and is short
        ("aten.mm.default(%0, $3)", "aten.mm.default(%2, $3)"),  # one needs the other
        ("float32[512,512]", "float32[4,4]"),  # nothing takes its time
    ],
)
def test_what_is_left_alone(change):
    assert proposed(TOWERS.replace(*change)) == []


def test_a_branch_much_longer_than_the_others_gains_nothing():
    text = TOWERS.replace("aten.mm.default(%3, $3)", "aten.neg.default(%3)").replace(
        "aten.mm.default(%0, $3) | float32[512,512]", "aten.view.default(%0, [int, int]) | float32[512,512]<0"
    )
    text = text.replace("holes=[1, 1]", "holes=[512, 512, 1, 1]")
    assert proposed(text) == []


def test_branches_that_run_apart_already_stay_so():
    assert proposed(homes=((0,), (0,), (0,), (1,)), executors=(0, 0, 0, 1, 1, 1, 0, 0)) == []


def test_a_row_that_another_executor_makes_already_stays_there():
    [proposal] = proposed(homes=((0,), (0,), (0,), (0,)), executors=(0, 0, 0, 0, 0, 2, 0, 0), n=3)
    assert proposal.rewrite.graph.executors == (0, 0, 0, 1, 1, 2, 0, 0)


def decided(at: Situation, text: str = TOWERS):
    laid, choices = improved(lay(given(text, at), at), [Branches()], at)
    return laid.rewrite.graph.executors, choices


def test_it_is_taken_where_its_gain_is_clear():
    executors, [choice] = decided(situation(EVERYWHERE))
    assert choice.taken
    assert executors == (0, 0, 0, 1, 1, 1, 0, 0)
    assert choice.predicted.seconds < 0.8 * choice.without.seconds


def test_behind_a_slow_link_the_plan_is_the_one_without():
    executors, [choice] = decided(situation(EVERYWHERE, link=2.0))
    assert not choice.taken
    assert set(executors) == {0}


def test_a_branch_s_weights_are_copied_once_that_is_earned():
    text = TOWERS
    for slot in ("$2", "$3"):
        text = text.replace(f"{slot} = float32[512,512]", f"{slot} = float32[8192,512]")
    executors, [first] = decided(situation(HERE, link=20.0), text)
    assert not first.taken
    assert set(executors) == {0}
    assert first.from_run
    _, [later] = decided(situation(HERE, link=20.0, runs=first.from_run), text)
    assert later.taken


def test_memory_that_a_branch_writes_has_one_owner():
    """A tower that writes the other one's input runs with it: bonds come before wishes."""
    text = TOWERS.replace(
        "aten.mm.default(%3, $3) | float32[512,512]", "aten.mul_.Tensor(%0, %3) | float32[512,512]<0 writes=0"
    )
    at = situation(EVERYWHERE)
    laid, _ = improved(lay(given(text, at), at), [Branches()], at)
    assert len({laid.rewrite.graph.executors[row] for row in (0, 4)}) == 1


FACTS = Facts("float32", (512, 512), 4)


@st.composite
def graphs(draw):
    rows = []
    for number in range(draw(st.integers(2, 14))):
        reads = draw(st.lists(st.integers(-1, number - 1), min_size=1, max_size=3))
        args = tuple(Slot(0) if at < 0 else Ref(at, 0) for at in reads)
        rows.append(Row(Node("aten.cat.default", (Items(args),)), (FACTS,), (None,)))
    keep = draw(st.sets(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
    return Graph(
        tuple(rows),
        (Outside(FACTS, 0),),
        keep=frozenset((row, 0) for row in keep),
        executors=(0,) * len(rows),
    )


@examples(graphs())
def test_no_branch_needs_anything_of_another(graph):
    table = costs(graph, pool().devices)
    needs = [{row} for row in range(len(graph.rows))]
    for number, row in enumerate(graph.rows):
        for arg in row.tensors():
            if isinstance(arg, Ref):
                needs[number] |= needs[arg.row]
    for fork in forks(graph, table):
        assert len(fork.branches) >= 2
        for at, branch in enumerate(fork.branches):
            for other in fork.branches[:at]:
                assert set(branch).isdisjoint(set().union(*(needs[row] for row in other)))
                assert set(other).isdisjoint(set().union(*(needs[row] for row in branch)))
        if fork.join is not None:
            assert all(row in needs[fork.join] for branch in fork.branches for row in branch)


def test_a_proposal_computes_the_same_rows_in_the_same_order():
    [proposal] = proposed()
    graph, made = parse_graph(TOWERS), proposal.rewrite
    assert made.graph.rows == graph.rows
    assert made.graph.holes == graph.holes
    assert made.outputs == unchanged(graph).outputs
