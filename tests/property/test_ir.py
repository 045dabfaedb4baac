"""Random templates survive both of their written forms; anything else is refused by name."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.errors import ProtocolError
from remora.ir.graph import Template
from remora.ir.node import Arg, Const, Hole, Items, Node, Ref, Slot, Symbol
from remora.ir.text import parse_template, print_template

_word = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
_op = st.builds(".".join, st.tuples(_word, _word, _word))
_text = st.text(st.characters(codec="utf-8"), max_size=16)
_leaf: st.SearchStrategy[Arg] = st.one_of(
    st.builds(Hole, st.sampled_from(["int", "float"])),
    st.builds(Const, st.none() | st.booleans() | _text),
    st.builds(
        Symbol, st.sampled_from(["dtype", "layout", "memory_format", "device", "complex"]), _text | _word
    ),
    st.builds(Slot, st.integers(0, 30)),
)


def _args(row: int) -> st.SearchStrategy[Arg]:
    ref = st.builds(Ref, st.integers(0, row - 1), st.integers(0, 3)) if row else st.nothing()
    leaf = _leaf | ref
    flat = st.builds(Items, st.lists(leaf, max_size=4).map(tuple))
    return leaf | flat | st.builds(Items, st.lists(leaf | flat, max_size=3).map(tuple))


@st.composite
def _node(draw: st.DrawFn, row: int) -> Node:
    arg = _args(row)
    names = draw(st.lists(_word, max_size=3, unique=True))
    layout = st.integers(0, 5).flatmap(lambda n: st.permutations(range(n))).map(tuple)
    return Node(
        draw(_op),
        tuple(draw(st.lists(arg, max_size=4))),
        tuple((name, draw(arg)) for name in names),
        tuple(draw(st.lists(layout, max_size=3))),
    )


def _renumber(arg: Arg, dense: dict[int, int]) -> Arg:
    match arg:
        case Slot(index):
            return Slot(dense[index])
        case Items(items):
            return Items(tuple(_renumber(item, dense) for item in items))
        case _:
            return arg


@st.composite
def templates(draw: st.DrawFn) -> Template:
    """Valid templates: rows that read earlier rows, slots made dense."""
    nodes = [draw(_node(row)) for row in range(draw(st.integers(0, 6)))]
    used = sorted({arg.index for node in nodes for arg in node.inputs() if isinstance(arg, Slot)})
    dense = {index: position for position, index in enumerate(used)}
    return Template(
        tuple(
            Node(
                node.op,
                tuple(_renumber(arg, dense) for arg in node.args),
                tuple((name, _renumber(arg, dense)) for name, arg in node.kwargs),
                node.layouts,
            )
            for node in nodes
        )
    )


@st.composite
def mutated(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """Valid bytes with a few bytes changed, inserted, cut or repeated."""
    body = bytearray(draw(originals))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        piece = draw(st.binary(max_size=6))
        match draw(st.sampled_from(["overwrite", "insert", "cut", "truncate", "repeat"])):
            case "overwrite":
                body[at : at + len(piece)] = piece
            case "insert":
                body[at:at] = piece
            case "cut":
                del body[at : at + len(piece)]
            case "truncate":
                del body[at:]
            case "repeat":
                body[at:at] = body[at : at + 20]
    return bytes(body)


@given(templates())
def test_body_decodes_to_the_same_template(template: Template) -> None:
    again = Template.decode(template.body)
    assert again == template
    assert again.body == template.body


@given(templates())
def test_text_parses_to_the_same_template(template: Template) -> None:
    text = print_template(template)
    assert parse_template(text) == template
    assert text.isascii()
    assert len(text.splitlines()) == len(template.nodes)


@given(templates())
def test_id_is_that_of_the_content_alone(template: Template) -> None:
    rebuilt = Template(tuple(Node(node.op, node.args, node.kwargs, node.layouts) for node in template.nodes))
    assert len(template.id) == 16
    assert rebuilt.id == template.id == Template.decode(template.body).id
    assert parse_template(print_template(template)).id == template.id


@given(templates(), templates())
def test_ids_and_texts_of_different_templates_differ(one: Template, other: Template) -> None:
    assert (one == other) == (one.id == other.id) == (print_template(one) == print_template(other))


@given(templates())
def test_holes_and_slots_are_counted(template: Template) -> None:
    text = print_template(template)
    inputs = [arg for node in template.nodes for arg in node.inputs()]
    assert len(template.holes) == sum(isinstance(arg, Hole) for arg in inputs)
    assert template.n_slots == len({arg.index for arg in inputs if isinstance(arg, Slot)})
    assert all(f"${slot}" in text for slot in range(template.n_slots))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(body: bytes) -> None:
    _decode_or_refuse(body)


@given(mutated(templates().map(lambda template: template.body)))
def test_mutated_body_is_refused_or_valid(body: bytes) -> None:
    _decode_or_refuse(body)


@given(mutated(templates().map(lambda template: print_template(template).encode())))
def test_mutated_text_is_refused_or_valid(text: bytes) -> None:
    try:
        template = parse_template(text.decode(errors="replace"))
    except (ValueError, ProtocolError):
        return
    assert parse_template(print_template(template)) == template


@given(templates(), st.integers(0, 5), st.integers(0, 5))
def test_reference_that_looks_forward_is_refused(template: Template, row: int, ahead: int) -> None:
    rows = len(template.nodes)
    at = math.floor(row * rows / 6)
    extra = Node("aten.neg.default", (Items((Ref(at + ahead),)),))
    nodes = (*template.nodes[:at], extra, *template.nodes[at:])
    with pytest.raises(ProtocolError, match=f"row {at} .*reads row {at + ahead}"):
        Template.decode(Template(nodes).body)


def _decode_or_refuse(body: bytes) -> None:
    try:
        template = Template.decode(body)
    except ProtocolError:
        return
    assert parse_template(print_template(template)) == template
