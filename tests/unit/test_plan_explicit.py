"""The policy that follows the program: a row is where it says, else where its tensors are."""

from __future__ import annotations

from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.graph import Template
from remora.ir.node import EXECUTOR, Arg, Items, Node, Ref, Slot, device_index, device_symbol
from remora.ir.text import parse_template, print_template
from remora.plan.estimate import costs
from remora.plan.parts import Transfer, placed, split
from remora.plan.policies import policy_named
from remora.plan.situation import Situation

FACTS = Facts("float32", (2,), 4)


def row(op: str, *args: Arg, device: int | None = None) -> Row:
    kwargs = () if device is None else (("device", device_symbol(device)),)
    return Row(Node(f"aten.{op}.default", args, kwargs), (FACTS,), (None,))


# a on device 2, b made on device 1; what is made of b goes to device 2
ROWS = (
    row("relu", Slot(0)),
    row("ones", device=1),
    row("neg", Ref(1)),
    row("clone", Ref(2)),
    row("_to_copy", Ref(3), device=2),
    row("cat", Items((Slot(0), Ref(4)))),
    row("zeros", device=0),
)
GRAPH = Graph(ROWS, (Outside(FACTS, 0),))
SITUATION = Situation((2,), (frozenset({2}),), (0, 0, 0), (1 << 30,) * 3, (0, 0, 0))


def test_rows_are_where_they_say_or_where_their_tensors_are():
    policy = policy_named("explicit")
    wish = policy.place(GRAPH, SITUATION, costs(GRAPH, ()))
    assert wish.executors == (2, 1, 1, 1, 2, 2, 0)
    assert wish.what == "1 on remora:0, 3 on remora:1, 3 on remora:2"
    assert wish.reason == "as the program says"
    assert policy.indexed
    assert not policy_named("data_aware").indexed


def test_parts_name_no_device_but_their_own_and_only_the_copy_travels():
    found = split(placed(GRAPH, (2, 1, 1, 1, 2, 2, 0)), SITUATION.homes, (2,))
    assert [(part.executor, part.rows) for part in found.parts] == [
        (0, (6,)),
        (1, (1, 2, 3)),
        (2, (0,)),
        (2, (4, 5)),
    ]
    assert found.transfers == (Transfer(Ref(3), 1, 2, 3, 1),)
    for part in found.parts:
        symbols = [value for node in part.template.nodes for _, value in node.kwargs]
        assert set(symbols) <= {EXECUTOR}


def test_the_first_device_is_written_as_the_only_one_is():
    assert device_symbol(0) == EXECUTOR
    nodes = [row("ones", device=index).node for index in (0, 1, 12)]
    assert [device_index(node) for node in nodes] == [0, 1, 12]
    assert device_index(row("relu", Slot(0)).node) is None
    template = Template(tuple(nodes))
    assert parse_template(print_template(template)) == template
