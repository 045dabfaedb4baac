"""The text form of a graph, by example."""

from __future__ import annotations

import pytest

from remora.errors import ProtocolError
from remora.ir.graph import Template
from remora.ir.node import Const, Hole, Items, Node, Ref, Slot, Symbol
from remora.ir.text import parse_template, print_template


def test_every_kind_of_argument_has_its_spelling() -> None:
    node = Node(
        "aten.x.y",
        (Slot(0), Hole("int"), Hole("float"), Const(None), Const(True), Const("a\n\"b\" = 'c'")),
        (("dtype", Symbol("dtype", "float32")), ("z", Symbol("complex", "(1+2j)")), ("items", Items(()))),
        ((), (1, 0)),
    )
    template = Template((node, Node("aten.neg.default", (Ref(0), Ref(0, 2)))))
    text = (
        '%0 = aten.x.y($0, int, float, None, True, "a\\n\\"b\\" = \'c\'", '
        'dtype=@dtype:float32, z=@complex:"(1+2j)", items=[]) {|1,0}\n'
        "%1 = aten.neg.default(%0, %0.2)\n"
    )
    assert print_template(template) == text
    assert parse_template(text) == template


def test_words_that_look_like_constants_stay_strings() -> None:
    for word in ("None", "True", "int", "%0", "$0", "@dtype:int8", "\u2028", ""):
        template = Template((Node("aten.x.y", (Const(word),)),))
        assert parse_template(print_template(template)) == template


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("aten.neg.default($0)", "line 1: expected '%0"),
        ("%0 = aten.neg.default($0)\n\n%2 = aten.neg.default(%0)", "line 3: expected '%1"),
        ("%0 = aten.neg.default($0", "line 1: expected ','"),
        ("%0 = aten.neg.default($0) extra", "line 1: 'extra' after"),
        ("%0 = aten.neg.default(foo)", "line 1: 'foo' is no argument"),
        ("%0 = aten.neg.default(1)", "line 1: '1' is no argument"),
        ("%0 = aten.neg.default(?)", "line 1: cannot read"),
        ("%0 = aten.neg.default($0) {a}", "line 1: 'a' in a layout"),
        ("%0 = aten.neg.default($" + "9" * 30 + ")", "too large|too deep"),
        ("%0 = aten.neg.default(" + "[" * 5000 + "]" * 5000 + ")", "too large|too deep"),
    ],
)
def test_what_is_no_graph_is_refused_by_line(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_template(text)


def test_graph_that_breaks_a_rule_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not dense"):
        parse_template("%0 = aten.neg.default($1)\n")
    with pytest.raises(ProtocolError, match="not a template"):
        parse_template("%0 = neg($0)\n")
