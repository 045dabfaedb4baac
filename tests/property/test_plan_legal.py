"""Bonds are kept under any wish: memory that is written has one home, and so have views that live on."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from plan_graphs import graphs

from remora.ir.annotated import Graph, Row, Stage
from remora.ir.node import Node, Ref
from remora.ir.stages import enter
from remora.plan.legal import legalised
from remora.plan.parts import placed
from remora.plan.situation import Situation


def situation(owners: tuple[int | None, ...], n: int) -> Situation:
    homes = tuple(frozenset() if at is None else frozenset({at}) for at in owners)
    return Situation(owners, homes, (0,) * n, (1 << 30,) * n, (0,) * n)


@given(graphs(), st.data())
def test_bonds_are_kept(graph: Graph, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    executor = st.integers(0, n - 1)
    views = data.draw(st.sets(st.integers(0, len(graph.rows) - 1)))
    rows = tuple(
        replace(row, shares=(0,)) if number in views and not row.writes else row
        for number, row in enumerate(graph.rows)
    )
    keep = frozenset((row, 0) for row in data.draw(st.sets(st.integers(0, len(rows) - 1))))
    graph = replace(graph, rows=rows, keep=keep)
    owners = tuple(data.draw(st.none() | executor) for _ in graph.slots)
    wished = tuple(data.draw(executor) for _ in rows)
    random = data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=2))
    generators = data.draw(st.none() | executor)
    legal = legalised(graph, wished, replace(situation(owners, n), generators=generators), random)
    enter(placed(graph, legal.executors), Stage.PLACED)
    drawn = {legal.executors[row] for row in random}
    assert len(drawn) <= 1
    assert generators is None or drawn <= {generators}
    now = {slot.storage: at for slot, at in zip(graph.slots, owners, strict=True) if at is not None}
    now.update(legal.moves)
    for number, row in enumerate(rows):
        lives = (number, 0) in keep and row.shares[0] is not None
        kind, storage, _ = graph.storage(Ref(number))
        if kind == "slot" and (row.writes or lives):
            assert legal.executors[number] == now[storage]


def test_nothing_is_bound_and_every_wish_is_granted() -> None:
    row = Row(Node("aten.op.default"), (None,), (None,))
    legal = legalised(Graph((row, row, row), ()), (2, 0, 1), situation((), 3), ())
    assert legal.executors == (2, 0, 1)
    assert not legal.moves


def test_random_rows_stay_together_anywhere_until_one_has_been_drawn() -> None:
    row = Row(Node("aten.op.default"), (None,), (None,))
    graph = Graph((row, row, row), ())
    assert legalised(graph, (2, 1, 1), situation((), 3), (0, 1, 2)).executors == (1, 1, 1)
    drawn = replace(situation((), 3), generators=0)
    assert legalised(graph, (2, 1, 1), drawn, (0, 1)).executors == (0, 0, 1)
