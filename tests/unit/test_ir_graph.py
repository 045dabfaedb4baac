"""The stage rules of a captured graph, and what names a template."""

from __future__ import annotations

import pytest

from remora.errors import ProtocolError
from remora.ir.graph import MAX_NESTING, MAX_ROWS, Template, check
from remora.ir.node import Arg, Const, Hole, Items, Node, Ref, Slot, Symbol


def _template(*nodes: Node) -> Template:
    return Template(nodes)


def _nested(depth: int) -> Arg:
    arg: Arg = Hole("int")
    for _ in range(depth):
        arg = Items((arg,))
    return arg


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (_template(Node("aten.neg.default", (Ref(0),))), "row 0 .*reads row 0"),
        (_template(Node("aten.neg.default", (Ref(1),)), Node("aten.neg.default", (Slot(0),))), "reads row 1"),
        (_template(Node("aten.cat.default", (Items((Slot(0), Ref(3))),))), "reads row 3"),
        (_template(Node("aten.neg.default", (), (("out", Ref(0)),))), "reads row 0"),
        (_template(Node("aten.neg.default", (Slot(1),))), "not dense: 1 used, highest is 1"),
        (_template(Node("aten.add.Tensor", (Slot(0), Slot(2)))), "not dense"),
        (_template(Node("aten.sum.dim", (_nested(MAX_NESTING + 1),))), "nests deeper"),
        (_template(Node("aten.sum.dim", (_nested(600),))), "nests deeper"),
        (
            _template(Node("aten.sum.dim", (), (("dim", Hole("int")), ("dim", Hole("int"))))),
            "keyword comes twice",
        ),
        (_template(Node("aten.clone.default", (Slot(0),), (), ((0, 2),))), "no order of dimensions"),
        (_template(Node("aten.clone.default", (Slot(0),), (), ((0, 0),))), "no order of dimensions"),
    ],
)
def test_broken_rule_is_refused_and_named(template: Template, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        check(template)


@pytest.mark.parametrize(
    "node",
    [
        Node("add"),
        Node("aten.add"),
        Node("aten.add.Tensor\n"),
        Node("os.system.__call__.x"),
        Node("aten.add.Tensor" + "x" * 200),
        Node("aten.add.Tensor", (Hole("int\n"),)),
        Node("aten.add.Tensor", (Hole("str"),)),
        Node("aten.add.Tensor", (Ref(-1),)),
        Node("aten.add.Tensor", (Ref(0, 1 << 40),)),
        Node("aten.add.Tensor", (Symbol("pickle", "x"),)),
        Node("aten.add.Tensor", (Const("x" * 65),)),
        Node("aten.add.Tensor", (), (("a b", Const(None)),)),
        Node("aten.add.Tensor", (), (("", Const(None)),)),
        Node("aten.add.Tensor", (Const(None),) * 257),
    ],
)
def test_value_out_of_its_bounds_is_refused_on_the_wire(node: Node) -> None:
    with pytest.raises(ProtocolError, match="not a template"):
        Template.decode(Template((node,)).body)


def test_text_that_is_not_utf8_is_refused() -> None:
    body = Template((Node("aten.gelu.default", (Const("tanh"),)),)).body.replace(b"tanh", b"\xff\xfe\xfd\xfc")
    with pytest.raises(ProtocolError, match="not a template"):
        Template.decode(body)


def test_number_of_rows_is_bounded() -> None:
    node = Node("aten.rand.default")
    assert len(Template.decode(Template((node,) * MAX_ROWS).body).nodes) == MAX_ROWS
    with pytest.raises(ProtocolError, match="length <= 4096"):
        Template.decode(Template((node,) * (MAX_ROWS + 1)).body)


def test_lists_may_nest_to_the_bound() -> None:
    check(_template(Node("aten.sum.dim", (_nested(MAX_NESTING),))))


def test_inputs_flatten_in_order_positional_first() -> None:
    args: tuple[Arg, ...] = (Slot(0), Items((Ref(1), Items((Hole("int"),)), Const("a"))), Slot(1))
    node = Node("aten.x.y", args, (("k", Items((Slot(2), Slot(3)))), ("l", Const(None))))
    expected = [Slot(0), Ref(1), Hole("int"), Const("a"), Slot(1), Slot(2), Slot(3), Const(None)]
    assert node.inputs() == expected


@pytest.mark.parametrize(
    "other",
    [
        Node("aten.add.Scalar", (Slot(0), Hole("int"))),
        Node("aten.add.Tensor", (Slot(0), Hole("float"))),
        Node("aten.add.Tensor", (Slot(0),), (("other", Hole("int")),)),
        Node("aten.add.Tensor", (Slot(0), Hole("int")), (), ((1, 0),)),
        Node("aten.add.Tensor", (Slot(0), Items((Hole("int"),)))),
    ],
)
def test_id_tells_ops_wiring_and_kinds_apart(other: Node) -> None:
    one = Node("aten.add.Tensor", (Slot(0), Hole("int")))
    assert Template((one,)).id != Template((other,)).id
