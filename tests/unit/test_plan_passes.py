"""Passes: a graph as text in, the graph that runs as text out; and when what a pass proposes is taken."""

from __future__ import annotations

import pytest

from remora.errors import UsageError
from remora.ir.annotated_text import parse_graph, print_graph
from remora.ops.cost import Kind
from remora.plan.devices import Device, Link, Pool, Rates, flat
from remora.plan.estimate import costs
from remora.plan.parts import placed
from remora.plan.passes import PASSES, frame, improved, lay, passes_named
from remora.plan.passes.batch_split import BatchSplit, shares
from remora.plan.passes.pipeline import Pipeline
from remora.plan.rewrite import unchanged
from remora.plan.situation import Situation

MB = 1 << 20

# Two layers of a prefill of 4 prompts: positions are the same for all, the cache lives on, the last row is wanted.
PREFILL = """graph ANNOTATED holes=[512, 2048, 512, 4, 512, 512, 1] keep=%4 wants=%6
$0 = float32[4,512,512] storage=0 input "input: test"
$1 = float32[512,512] storage=1 uploaded weight layer=0 "weight: test"
$2 = float32[512,512] storage=2 uploaded weight layer=1 "weight: test"
%0 = aten.arange.default(int) | float32[512] prefill "phase: test"
%1 = aten.add.Tensor($0, %0) | float32[4,512,512] prefill layer=0 "phase: test"
%2 = aten.view.default(%1, [int, int]) | float32[2048,512]<0 prefill layer=0 "phase: test"
%3 = aten.mm.default(%2, $1) | float32[2048,512] prefill layer=0 "phase: test"
%4 = aten.view.default(%3, [int, int, int]) | float32[4,512,512]<0 prefill layer=0 "phase: test"
%5 = aten.linear.default(%4, $2) | float32[4,512,512] prefill layer=1 "phase: test"
%6 = aten.sum.dim_IntList(%5, [int]) | float32[4,512] prefill layer=1 "phase: test"
"""


def pool(n: int = 2, link: float = 1000.0, sigma: float = 0.05) -> Pool:
    move = Rates(0.0, flat(100.0 * MB), flat(100.0 * MB), sigma=sigma)
    rates = {Kind.MOVE: move, Kind.PRODUCT: move}
    devices = tuple(Device(f"d{at}", 1 << 30, 0.0, 0.0, 0.0, rates, sigma=sigma) for at in range(n))
    links = {(a, b): Link(link * MB, 1e-5, sigma=sigma) for a in range(n) for b in range(n) if a != b}
    return Pool(devices, links, (Link(1000.0 * MB, 1e-5),) * n)


def situation(homes=((0,), (0,), (0,)), runs: int = 0, limit: int = 1 << 30, **more) -> Situation:
    of = pool(**more)
    n = len(of.devices)
    owners = tuple(home[0] for home in homes)
    return Situation(
        owners, tuple(map(frozenset, homes)), (0,) * n, (limit,) * n, (0,) * n, pool=of, runs=runs
    )


def given(text: str, at: Situation, executors=None):
    graph = parse_graph(text)
    return unchanged(placed(graph, executors or (0,) * len(graph.rows)))


def proposed(one, text: str = PREFILL, executors=None, **more):
    at = situation(**more)
    now = given(text, at, executors)
    return list(one.propose(now, at, costs(now.graph, at.pool.devices)))


def test_a_split_batch_as_text():
    [proposal] = proposed(BatchSplit())
    made = proposal.rewrite
    assert proposal.what == "a batch of 4 in slices: 2 on executor 0, 2 on executor 1"
    lines = [
        line.split(" prefill")[0].split(" input")[0] for line in print_graph(made.graph).splitlines()[4:]
    ]
    assert lines == [
        "%0 = aten.slice.Tensor($0, int, int, int) | float32[2,512,512]<0 executor=0",
        "%1 = aten.slice.Tensor($0, int, int, int) | float32[2,512,512]<0 executor=0",
        "%2 = aten.arange.default(int) | float32[512] executor=0",
        "%3 = aten.add.Tensor(%0, %2) | float32[2,512,512] executor=0",
        "%4 = aten.view.default(%3, [int, int]) | float32[1024,512]<0 executor=0",
        "%5 = aten.mm.default(%4, $1) | float32[1024,512] executor=0",
        "%6 = aten.view.default(%5, [int, int, int]) | float32[2,512,512]<0 executor=0",
        "%7 = aten.linear.default(%6, $2) | float32[2,512,512] executor=0",
        "%8 = aten.sum.dim_IntList(%7, [int]) | float32[2,512] executor=0",
        "%9 = aten.arange.default(int) | float32[512] executor=1",
        "%10 = aten.add.Tensor(%1, %9) | float32[2,512,512] executor=1",
        "%11 = aten.view.default(%10, [int, int]) | float32[1024,512]<0 executor=1",
        "%12 = aten.mm.default(%11, $1) | float32[1024,512] executor=1",
        "%13 = aten.view.default(%12, [int, int, int]) | float32[2,512,512]<0 executor=1",
        "%14 = aten.linear.default(%13, $2) | float32[2,512,512] executor=1",
        "%15 = aten.sum.dim_IntList(%14, [int]) | float32[2,512] executor=1",
        "%16 = aten.cat.default([%5, %12], int) | float32[2048,512] executor=0",
        "%17 = aten.view.default(%16, [int, int, int]) | float32[4,512,512]<0 executor=0",
        "%18 = aten.cat.default([%8, %15], int) | float32[4,512] executor=0",
    ]
    assert made.outputs == {(4, 0): (17, 0), (6, 0): (18, 0)}
    assert made.exact
    assert made.graph.keep == {(17, 0)}
    assert made.graph.wants == {(18, 0)}


def test_sizes_of_the_batch_are_the_slices_and_other_numbers_are_the_programs():
    [proposal] = proposed(BatchSplit())
    made = proposal.rewrite
    numbers = dict(enumerate(made.graph.holes))
    bound = {made.holes[at]: number for at, number in numbers.items() if made.holes[at] is not None}
    known = parse_graph(PREFILL).holes
    assert all(number == known[at] for at, number in bound.items())
    assert {number for at, number in numbers.items() if made.holes[at] is None} == {0, 2, 4, 1024}


def test_rows_keep_their_place_in_the_program():
    [proposal] = proposed(BatchSplit())
    assert proposal.rewrite.rows[5] == proposal.rewrite.rows[12] == proposal.rewrite.rows[16] == 3


def test_a_layers_part_sets_out_when_it_is_made():
    [proposal] = proposed(BatchSplit())
    at = situation()
    parts = lay(proposal.rewrite, at).parts
    made = next(number for number, part in enumerate(parts.parts) if 12 in part.rows)
    later = [part for part in parts.parts[made + 1 :] if part.executor == 1]
    assert parts.parts[made].rows[-1] in (12, 15)
    assert all(transfer.after is not None for transfer in parts.transfers if hasattr(transfer.value, "row"))
    assert later or parts.parts[made].rows[-1] == 15


@pytest.mark.parametrize(
    "change",
    [
        ("aten.mm.default(%2, $1)", "aten.mm.default($1, %2)"),  # the batch is what is added over
        ("aten.sum.dim_IntList(%5, [int]) | float32[4,512]", "aten.abs.default(%5) | float32[4,512,512]"),
    ],
)
def test_what_needs_the_whole_batch_is_made_where_it_was(change):
    text = PREFILL.replace(*change)
    if "abs" in change[1]:
        text = text.replace(", 1]", "]")
    for proposal in proposed(BatchSplit(), text):
        for row, executor in zip(proposal.rewrite.graph.rows, proposal.rewrite.graph.executors, strict=True):
            assert executor in (0, 1)
            if row.node.op == "aten.cat.default":
                assert executor == 0


def test_decoding_and_memory_that_is_written_are_left_alone():
    assert proposed(BatchSplit(), PREFILL.replace("prefill", "decode")) == []
    written = PREFILL.replace(
        "aten.add.Tensor($0, %0) | float32[4,512,512]",
        "aten.add_.Tensor($0, %0) | float32[4,512,512]<0 writes=0",
    )
    assert proposed(BatchSplit(), written) == []


def test_stages_end_where_the_time_is_shared_and_little_travels():
    [four] = proposed(Pipeline())  # more micro-batches than entries are none
    stages = [
        executor
        for row, executor in zip(four.rewrite.graph.rows, four.rewrite.graph.executors, strict=True)
        if row.node.op in ("aten.mm.default", "aten.linear.default")
    ]
    assert stages == [0, 1] * 4


def test_stages_are_those_that_rows_are_placed_in():
    [four] = proposed(Pipeline(), executors=(0, 0, 0, 0, 0, 1, 1), homes=((0,), (0,), (1,)))
    assert "as placed" in four.what
    assert {
        executor
        for row, executor in zip(four.rewrite.graph.rows, four.rewrite.graph.executors, strict=True)
        if row.node.op == "aten.linear.default"
    } == {1}


def decided(at: Situation, passes=PASSES):
    laid, choices = improved(lay(given(PREFILL, at), at), passes, at)
    return set(laid.rewrite.graph.executors), choices


def test_a_pass_is_taken_where_its_gain_is_clear():
    executors, [choice] = decided(situation(homes=((0,), (0, 1), (0, 1))))
    assert executors == {0, 1}
    assert choice.taken
    assert choice.predicted.seconds < 0.85 * choice.without.seconds


def test_behind_a_slow_link_the_plan_is_the_one_without():
    at = situation(homes=((0,), (0, 1), (0, 1)), link=10.0)
    executors, choices = decided(at)
    assert executors == {0}
    assert not any(choice.taken for choice in choices)


def test_where_the_model_is_unsure_nothing_is_taken():
    executors, choices = decided(situation(homes=((0,), (0, 1), (0, 1)), sigma=2.0))
    assert executors == {0}
    assert "is not clear" in choices[0].reason


def test_what_has_to_be_copied_is_earned_first(monkeypatch):
    """Weights cross a link that takes several gains' time for them."""
    monkeypatch.setattr(frame, "DOUBT", 0.0)
    text = PREFILL.replace("$2 = float32[512,512]", "$2 = float32[262144,512]")
    found = []
    for runs in range(40):
        at = situation(runs=runs, sigma=0.0)
        _, [choice] = improved(lay(given(text, at), at), [BatchSplit()], at)
        found.append(choice)
        if choice.taken:
            break
    first, last = found[0], found[-1]
    assert last.taken
    assert not first.taken
    assert first.from_run == len(found) - 1


def test_what_does_not_fit_is_not_proposed():
    executors, choices = decided(situation(limit=4 * MB))
    assert executors == {0}
    assert not any(choice.taken for choice in choices)


def test_shares_follow_speed():
    assert shares(8, [1.0, 1.0]) == [4, 4]
    assert shares(8, [1.0, 3.0]) == [6, 2]
    assert shares(3, [1.0, 1.0]) == [2, 1]
    assert sum(shares(7, [1.0, 1.3, 0.7])) == 7


def test_passes_are_chosen_by_name():
    names = [one.name for one in PASSES]
    assert [one.name for one in passes_named("all")] == names
    assert passes_named("none") == ()
    assert [one.name for one in passes_named("pipeline,batch_split")] == ["batch_split", "pipeline"]
    assert [one.name for one in passes_named("-batch_split")] == [
        name for name in names if name != "batch_split"
    ]
    with pytest.raises(UsageError, match=r"no pass 'best'; there are batch_split"):
        passes_named("best")
