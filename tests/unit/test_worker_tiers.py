"""Programs in pieces: the same results, failures and accounts as interpreted, whatever changes between runs.

Graphs are played by a stand-in (tests/graph_lane.py). What only a GPU can show is in test_worker_graphs.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from graph_lane import Lane
from remora.ir.node import Hole, Items, Node, Ref, Slot
from remora.wire.messages import Failed, Free, Put, Recover
from worker_endpoint import LIMIT_NBYTES


@pytest.fixture
def lane():
    lane = Lane()
    with torch.inference_mode():
        yield lane
    for session in lane.sessions:
        session.close()


def mul(a, b):
    return Node("aten.mul.Tensor", (a, b))


def add(a, b):
    return Node("aten.add.Tensor", (a, b))


# rows 0 to 3 and 5 to 7 are the same each time; row 4 reads a cache that grows
DECODE = (
    mul(Slot(0), Slot(1)),
    add(Ref(0), Slot(1)),
    mul(Ref(1), Ref(0)),
    add(Ref(2), Ref(0)),
    Node("aten.cat.default", (Items((Slot(2), Ref(3))),)),
    Node("aten.sum.dim_IntList", (Ref(4), Items((Hole("int"),)))),
    mul(Ref(5), Slot(1)),
    add(Ref(6), Ref(3)),
    mul(Ref(7), Ref(7)),
    add(Ref(8), Ref(6)),
)


def decode(lane, steps, first=10, site=None):
    """Runs of a step that reads the last one's result (row 9) and cache (row 4)."""
    site = lane.program(*DECODE) if site is None else site
    last, cache = (2, 0, 0), (3, 0, 0)
    for segment in range(first, first + steps):
        lane.run(segment, site, [last, (1, 0, 0), cache], (9, 0, 4, 0, 2, 0), holes=[0])
        last, cache = (segment, 9, 0), (segment, 4, 0)
        lane.same(last, cache, (segment, 2, 0))
    return site


def start(lane):
    lane.put(1, torch.rand(1, 4))
    lane.put(2, torch.rand(1, 4))
    lane.put(3, torch.rand(1, 4))


def test_a_step_that_repeats_is_replayed_in_pieces(lane):
    start(lane)
    decode(lane, 12)
    assert lane.recorder.recorded >= 2
    assert lane.recorder.replayed >= 10
    lane.same(*[(segment, 2, 0) for segment in range(10, 22)])  # what earlier runs made is as it was


def test_what_is_kept_counts_as_much_as_without_graphs_and_graphs_beside_it(lane):
    start(lane)
    decode(lane, 8)
    graphed, plain_one = lane.sessions
    assert graphed.tiers.nbytes > 0
    graphed.device.drop_graphs()
    assert graphed.tiers.nbytes == 0
    assert graphed.values.used_nbytes == plain_one.values.used_nbytes
    assert graphed.values.held_nbytes == plain_one.values.held_nbytes
    for segment in range(10, 18):
        lane.tell(Free((segment, 9, 0, segment, 4, 0, segment, 2, 0)))
    assert graphed.values.used_nbytes == plain_one.values.used_nbytes == 3 * 16


def test_a_weight_that_is_replaced_is_read_where_it_is_now(lane):
    start(lane)
    site = decode(lane, 5)
    lane.put(90, torch.rand(1, 4))
    for segment in range(100, 110):
        lane.run(segment, site, [(2, 0, 0), (90, 0, 0), (3, 0, 0)], (9, 0), holes=[0])
        lane.same((segment, 9, 0))
    assert lane.recorder.replayed > 10


def test_another_shape_and_another_number_run_as_they_should(lane):
    start(lane)
    site = decode(lane, 5)
    for name in (90, 91, 92):
        lane.put(name, torch.rand(3, 4))
    for segment in range(100, 112):
        slots = [(90, 0, 0), (91, 0, 0), (92, 0, 0)] if segment % 4 < 2 else [(2, 0, 0), (1, 0, 0), (3, 0, 0)]
        lane.run(segment, site, slots, (9, 0), holes=[segment % 3 % 2])
        lane.same((segment, 9, 0))


def test_layers_that_take_turns_at_one_site_are_graphs_of_their_own(lane):
    start(lane)
    site = lane.program(*DECODE)
    weights = range(50, 53)
    for name in weights:
        lane.put(name, torch.rand(1, 4))
        lane.put(10 + name, torch.rand(1, 4))
    caches = {name: (10 + name, 0, 0) for name in weights}
    segment, last = 100, (2, 0, 0)
    for _ in range(12):
        for name in weights:
            lane.run(segment, site, [last, (name, 0, 0), caches[name]], (9, 0, 4, 0), holes=[0])
            last, caches[name] = (segment, 9, 0), (segment, 4, 0)
            lane.same(last)
            segment += 1
    assert [tier.plan.runs >= 8 for tier in lane.graphed.tiers.all()] == [True] * 3


def test_what_looked_the_same_and_is_not_ends_up_outside_of_graphs(lane):
    """Two runs with equal caches, then it grows each time."""
    start(lane)
    site = lane.program(*DECODE)
    cache = (3, 0, 0)
    for segment in range(10, 13):
        lane.run(segment, site, [(2, 0, 0), (1, 0, 0), cache], (9, 0, 4, 0, 2, 0), holes=[0])
    decode(lane, 20, first=20, site=site)
    (tier,) = lane.graphed.tiers.all()
    assert tier.plan is not None
    assert tier.plan.runs >= 8


def test_programs_that_never_settle_are_left_alone(lane):
    start(lane)
    site = lane.program(*DECODE)
    for segment in range(10, 60):
        lane.put(100 + segment, torch.rand(1 + segment % 7, 4))
        name = (100 + segment, 0, 0)
        lane.run(1000 + segment, site, [name, name, name], (9, 0), holes=[0])
    assert lane.recorder.recorded <= 8


def test_a_failure_names_its_row_and_leaves_what_was_made_before(lane):
    start(lane)
    site = decode(lane, 5)
    lane.put(90, torch.rand(1, 5))  # does not fit behind the cache
    failed = lane.run(100, site, [(2, 0, 0), (1, 0, 0), (90, 0, 0)], (3, 0, 9, 0, 4, 0), holes=[0])
    assert isinstance(failed, Failed)
    assert failed.row == 4
    lane.tell(Recover(failed.failure))
    lane.same((100, 3, 0))
    for session in lane.sessions:
        assert (100, 9, 0) not in session.values.tensors
    decode(lane, 3, first=200, site=site)


def test_a_row_that_fails_inside_of_a_piece_is_the_one_that_is_named(lane):
    start(lane)
    for name, index in ((40, 0), (41, 7)):
        lane.tell(Put(name, "int64", (1,), index.to_bytes(8, "little")))
    look_up = Node("aten.embedding.default", (Slot(0), Slot(1)))
    site = lane.program(mul(Slot(0), Slot(0)), add(Ref(0), Slot(0)), look_up, add(Ref(2), Ref(1)))
    for segment in range(10, 16):
        lane.run(segment, site, [(1, 0, 0), (40, 0, 0)], (3, 0))
    assert lane.recorder.replayed
    failed = lane.run(20, site, [(1, 0, 0), (41, 0, 0)], (1, 0, 3, 0))
    failed = lane.run(21, site, [(1, 0, 0), (41, 0, 0)], (3, 0)) or failed
    assert (failed.row, failed.op, failed.kind) == (2, "aten.embedding.default", "index")
    lane.tell(Recover(failed.failure))
    lane.run(30, site, [(1, 0, 0), (40, 0, 0)], (3, 0))
    lane.same((30, 3, 0))


def test_a_write_in_place_shows_in_what_shares_the_memory_and_nowhere_else(lane):
    start(lane)
    maker = lane.program(mul(Slot(0), Slot(0)), add(Ref(0), Slot(0)), mul(Ref(1), Ref(1)))
    viewer = lane.program(Node("aten.view.default", (Slot(0), Items((Hole("int"),)))))
    writer = lane.program(Node("aten.mul_.Tensor", (Slot(0), Slot(1))), add(Ref(0), Ref(0)))
    for segment in range(10, 60, 5):
        lane.run(segment, maker, [(1, 0, 0)], (2, 0, 1, 0))
        lane.run(segment + 1, viewer, [(segment, 2, 0)], (0, 0), holes=[4])
        lane.run(segment + 2, writer, [(segment + 1, 0, 0), (segment + 1, 0, 0)], (0, 0))
        lane.same((segment, 2, 0), (segment + 1, 0, 0), (segment, 1, 0), (segment + 2, 0, 0))
    lane.same(*[(segment, 2, 0) for segment in range(10, 60, 5)])
    lane.same(*[(segment + 1, 0, 0) for segment in range(10, 60, 5)])
    assert lane.recorder.replayed > 4


def test_what_is_written_in_place_lies_in_memory_of_its_own(lane):
    """So that whoever saves what a write destroys can put it back where it was."""
    start(lane)
    maker = lane.program(mul(Slot(0), Slot(0)), add(Ref(0), Slot(0)), mul(Ref(1), Ref(1)))
    writer = lane.program(Node("aten.mul_.Tensor", (Slot(0), Slot(1))))
    values = lane.graphed.values
    for segment in range(10, 40, 5):
        lane.run(segment, maker, [(1, 0, 0)], (2, 0))
        lent = values.tensors[segment, 2, 0].untyped_storage()._cdata in values.lent
        lane.run(segment + 1, writer, [(segment, 2, 0), (1, 0, 0)], ())
        assert values.tensors[segment, 2, 0].untyped_storage()._cdata not in values.lent
    assert lent
    lane.same(*[(segment, 2, 0) for segment in range(10, 40, 5)])


def test_many_kept_results_are_moved_together(lane):
    start(lane)
    nodes = [mul(Slot(0), Slot(1))]
    nodes += [add(Ref(row), Slot(1)) for row in range(7)]
    site = lane.program(*nodes)
    for segment in range(10, 22):
        lane.put(100 + segment, torch.rand(1, 4))
        lane.run(
            200 + segment,
            site,
            [(100 + segment, 0, 0), (1, 0, 0)],
            tuple(n for r in range(8) for n in (r, 0)),
        )
    assert lane.recorder.replayed > 5
    lane.same(*[(200 + segment, row, 0) for segment in range(10, 22) for row in range(8)])


def test_without_room_nothing_is_recorded_and_under_pressure_graphs_go_first(lane):
    start(lane)
    session = lane.graphed
    whole, session.tiers.room_nbytes = session.tiers.room_nbytes, lambda: 1 << 20
    site = decode(lane, 6)
    assert lane.recorder.recorded == 0
    session.tiers.room_nbytes = lambda: 1 << 40
    decode(lane, 4, first=50, site=site)
    assert session.tiers.nbytes > 0
    session.tiers.room_nbytes = whole
    (plan,) = [tier.plan for tier in session.tiers.all() if tier.plan]
    plan.nbytes += LIMIT_NBYTES  # as if graphs were large
    session.tiers.nbytes += LIMIT_NBYTES
    session.device.room_nbytes = lambda: LIMIT_NBYTES - session.used_nbytes
    session.admit(1 << 20)
    assert not any(tier.plan for tier in session.tiers.all())
