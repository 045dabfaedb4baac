"""Random annotated graphs survive their text form; anything else is refused by line."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.errors import ProtocolError
from remora.ir.annotated import Facts, Graph, Meaning, Modality, Outside, Phase, Residency, Row, Stage
from remora.ir.annotated_text import parse_graph, print_graph
from remora.ir.node import Const, Hole, Items, Node, Ref, Slot

_text = st.text(st.characters(codec="utf-8"), max_size=12)
_count = st.integers(0, 1 << 50)
_arg = st.one_of(
    st.builds(Slot, st.integers(0, 3)),
    st.builds(Ref, st.integers(0, 3), st.integers(0, 2)),
    st.builds(Hole, st.sampled_from(["int", "float"])),
    st.builds(Const, st.none() | st.booleans() | _text),
)
_args = st.lists(_arg | st.builds(Items, st.lists(_arg, max_size=3).map(tuple)), max_size=3).map(tuple)
_layouts = st.sampled_from([(), ((), (1, 0)), ((0, 2, 1),)])
_node = st.builds(Node, st.sampled_from(["aten.cat.default", "x.y.z"]), _args, st.just(()), _layouts)
_facts = st.builds(
    Facts,
    st.sampled_from(["float32", "bool", "bfloat16", "float8_e4m3fn", "complex64", "odd"]),
    st.lists(st.integers(0, 1 << 40), max_size=4).map(tuple),
    st.integers(1, 16),
)
_meaning = st.builds(
    Meaning,
    st.none() | st.sampled_from(Residency),
    st.none() | st.sampled_from(Phase),
    st.none() | st.sampled_from(Modality),
    st.none() | st.integers(0, 200),
    st.lists(_text, max_size=2).map(tuple),
)
_outside = st.builds(
    Outside,
    _facts,
    _count,
    uploaded=st.booleans(),
    made_by=st.none() | st.tuples(_node, st.integers(0, 3)),
    made_in=_text,
    age=_count,
    written=st.booleans(),
    reads=_count,
    meaning=_meaning,
)
_outputs = st.frozensets(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=3)


@st.composite
def _rows(draw: st.DrawFn) -> Row:
    outs = tuple(draw(st.lists(st.none() | _facts, max_size=3)))
    shares = tuple(draw(st.none() | st.integers(0, 5)) for _ in outs)
    writes = tuple(draw(st.lists(st.integers(0, 5), max_size=2)))
    return Row(draw(_node), outs, shares, writes, draw(_text), draw(_text), draw(_meaning))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    rows = tuple(draw(st.lists(_rows(), max_size=3)))
    holes = st.lists(st.integers(-(1 << 62), 1 << 62) | st.floats(allow_nan=False), max_size=3).map(tuple)
    executors = tuple(draw(st.integers(-1, 9)) for _ in rows) if draw(st.booleans()) else ()
    slots = tuple(draw(st.lists(_outside, max_size=3)))
    stage = draw(st.sampled_from(Stage))
    return Graph(rows, slots, draw(holes), draw(_outputs), draw(_outputs), stage, executors, draw(_text))


@given(graphs())
def test_text_parses_to_the_same_graph(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text)
    assert again == graph
    assert [type(hole) for hole in again.holes] == [type(hole) for hole in graph.holes]
    assert print_graph(again) == text
    assert text.isascii()
    assert len(text.splitlines()) == 1 + len(graph.slots) + len(graph.rows)


@given(graphs(), graphs())
def test_texts_of_different_graphs_differ(one: Graph, other: Graph) -> None:
    assert (one == other) == (print_graph(one) == print_graph(other))


@given(graphs(), st.data())
def test_mutated_text_is_refused_or_valid(graph: Graph, data: st.DataObject) -> None:
    text = print_graph(graph)
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 5))
    text = text[:at] + data.draw(st.text(max_size=5)) + text[at + cut :]
    try:
        graph = parse_graph(text)
    except (ValueError, ProtocolError):
        return
    assert repr(parse_graph(print_graph(graph))) == repr(graph)  # repr: nan is not equal to itself


def test_every_field_has_a_place_in_the_text() -> None:
    """A field that is added to the graph and not to its text would be lost without a word."""
    assert {field.name for field in fields(Row) if field.init} == {
        *("node", "outs", "shares", "writes", "module", "source", "meaning")
    }
    assert {field.name for field in fields(Outside)} == {
        *("facts", "storage", "uploaded", "made_by", "made_in", "age", "written", "reads", "meaning")
    }
    assert {field.name for field in fields(Graph)} == {
        *("rows", "slots", "holes", "keep", "wants", "stage", "executors", "template")
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: expected 'graph STAGE', got nothing"),
        ("graph LATER", "line 1: expected 'graph STAGE'"),
        ("graph CAPTURED holes=[true]", "line 1: .* is no list of numbers"),
        ("graph CAPTURED keep=1", "line 1: 'keep=1' is no list of outputs"),
        ("graph CAPTURED\n$0 = float32[2]", "line 2: a slot without a storage"),
        ("graph CAPTURED\n$0 = float32[x] storage=0", "line 2: 'float32.x.' is no tensor"),
        ("graph CAPTURED\n$1 = float32[2] storage=0", "line 2: expected slot 0 or row 0"),
        ("graph CAPTURED\n%0 = x.y.z() | float32[2] warm", "line 2: 'warm' is no part of a slot or row"),
        ("graph CAPTURED\n%0 = x.y.z() extra | float32[2]", "line 2: 'extra' after the node's end"),
        ("graph CAPTURED\n%0 = x.y.z() | executor=0\n%1 = x.y.z() |", "line 3: 2 rows, 1 executors"),
    ],
)
def test_what_is_no_graph_is_refused_by_line(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_graph(text)
