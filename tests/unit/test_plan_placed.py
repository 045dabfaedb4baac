"""Predicted seconds of whole placed graphs, with what travels between executors."""

from __future__ import annotations

import pytest

from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.text import parse_template
from remora.ops.cost import Kind
from remora.plan.devices import CLIENT, Device, Link, Pool, Rates, flat
from remora.plan.estimate import costs
from remora.plan.parts import placed, split
from remora.plan.placed import Placed, predict
from remora.plan.record import Key, Record

MB = 1 << 20
QUARTER = MB // 4


def device(name: str) -> Device:
    """Moves 1 MB a second, and nothing else takes time."""
    move = Rates(0.0, flat(MB), flat(MB))
    return Device(name, 1 << 30, 0.0, 0.0, {Kind.MOVE: move, Kind.PRODUCT: move})


POOL = Pool(
    (device("a"), device("b")),
    {(0, 1): Link(float(MB), 1.0), (1, 0): Link(float(MB), 1.0)},
    (Link(float(MB), 3.0), Link(float(MB), 3.0)),
)
TEXT = """%0 = aten.neg.default($0)
%1 = aten.neg.default(%0)
%2 = aten.neg.default(%0)
%3 = aten.add.Tensor(%1, %2)
"""
# each row reads 1 MB and writes 1 MB, in 2 s; the last reads two: 3 s


def graph(wants: frozenset[tuple[int, int]] = frozenset()) -> Graph:
    facts = Facts("float32", (QUARTER,), 4)
    rows = tuple(Row(node, (facts,), (None,)) for node in parse_template(TEXT).nodes)
    return Graph(rows, (Outside(facts, 0),), wants=wants)


HERE, BOTH = (frozenset({0}),), (frozenset({0, 1}),)


def predicted(executors, homes=HERE, owner=0, correct=None, **more) -> Placed:
    whole = placed(graph(**more), tuple(executors))
    return predict(whole, split(whole, homes, (owner,)), costs(whole, POOL.devices), POOL, correct)


def test_on_one_executor_rows_add_up_and_nothing_travels():
    found = predicted([0, 0, 0, 0])
    assert found.estimate.duration.seconds == pytest.approx(9.0)
    assert found.estimate.wire_nbytes == 0
    assert found.estimate.bytes_read == 5 * MB


def test_branches_on_two_executors_overlap_but_for_the_transfers():
    found = predicted([0, 0, 1, 0])
    # a: rows 0, 1 until 4 s, as one part; b: row 2 once row 0's value is there; then back to a
    assert found.schedule.starts_s == (0.0, pytest.approx(4.0 + 2.0), pytest.approx(8.0 + 2.0))
    assert found.estimate.duration.seconds == pytest.approx(13.0)
    assert found.estimate.wire_nbytes == 2 * MB


def test_what_an_executor_holds_need_not_come_again():
    assert predicted([1, 1, 1, 1], HERE).estimate.duration.seconds == pytest.approx(2.0 + 9.0)
    assert predicted([1, 1, 1, 1], BOTH).estimate.duration.seconds == pytest.approx(9.0)
    uploaded = predicted([1, 1, 1, 1], (frozenset(),), CLIENT)
    assert uploaded.estimate.duration.seconds == pytest.approx(4.0 + 9.0)
    assert uploaded.schedule.transfers[0].source == CLIENT


def test_a_value_that_two_parts_read_travels_once():
    found = predicted([0, 1, 1, 1])
    assert [sent.nbytes for sent in found.schedule.transfers] == [MB]


def test_what_the_client_wants_comes_back_to_it():
    found = predicted([0, 0, 0, 0], wants=frozenset({(3, 0)}))
    assert found.estimate.duration.seconds == pytest.approx(9.0 + 4.0)
    assert found.estimate.wire_nbytes == MB


def test_a_record_corrects_the_parts_that_have_run():
    record = Record()
    name = POOL.devices[0].name
    for _ in range(3):
        record.add(Key(split(graph_on([0] * 4), HERE, (0,)).parts[0].template.id, 0, name), 1.0, 2.0)
    found = predicted(
        [0] * 4, correct=lambda part, took: record.correct(Key(part.template.id, 0, name), took)
    )
    assert found.estimate.duration.seconds == pytest.approx(18.0)
    assert found.parts[0].duration.seconds == pytest.approx(18.0)


def graph_on(executors) -> Graph:
    return placed(graph(), tuple(executors))


def test_views_of_one_memory_travel_as_one():
    text = "%0 = aten.neg.default($0)\n%1 = aten.view.default(%0, [int])\n%2 = aten.add.Tensor(%0, %1)\n"
    facts = Facts("float32", (QUARTER,), 4)
    nodes = parse_template(text).nodes
    shares = ((None,), (0,), (None,))
    rows = tuple(Row(node, (facts,), shared) for node, shared in zip(nodes, shares, strict=True))
    whole = placed(Graph(rows, (Outside(facts, 0),), (QUARTER,)), (0, 0, 1))
    found = predict(whole, split(whole, HERE, (0,)), costs(whole, POOL.devices), POOL)
    assert found.estimate.wire_nbytes == MB
