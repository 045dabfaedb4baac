"""The picture of a placed graph: text of a graph in, blocks and edges out."""

from __future__ import annotations

from remora.ir.annotated_text import parse_graph
from remora.plan.explain import CLIENT, Block, Edge, Picture
from remora.plan.parts import split
from remora.plan.picture import FIRST, LAST, joined, picture_of

# Two layers on two executors; the head's weight is tied to the embedding's.
TWO_LAYERS = """
graph PLACED holes=[] keep=%3,%5 wants=%7
$0 = int64[1,1] storage=0 uploaded input "input: …"
$1 = float32[10,4] storage=1 uploaded reads=1 weight "weight: …"
$2 = float32[4,4] storage=2 uploaded reads=1 weight layer=0 "weight: …"
$3 = float32[1,8,4] storage=3 reads=1 kv_cache layer=0 "cache: …"
$4 = float32[4,4] storage=4 uploaded reads=1 weight layer=1 "weight: …"
%0 = aten.embedding.default($1, $0) | float32[1,1,4] module="model.wte" executor=0
%1 = aten.linear.default(%0, $2) | float32[1,1,4] module="model.h.0.attn (Attention)" executor=0 layer=0 "layer: …"
%2 = aten.view.default(%1, [int, int]) | float32[1,4]<0 executor=0
%3 = aten.cat.default([$3, %1], int) | float32[1,9,4] module="model.h.0.attn" executor=0 kv_cache layer=0 "cache: …"
%4 = aten.linear.default(%2, $4) | float32[1,4] module="model.h.1.mlp" executor=1 layer=1 "layer: …"
%5 = aten.relu.default(%4) | float32[1,4] module="model.h.1.mlp" executor=1 layer=1 "layer: …"
%6 = aten.linear.default(%5, $1) | float32[1,10] module="model.head" executor=0
%7 = aten.argmax.default(%6, int) | int64[1] module="model.head" executor=0 output "output: …"
"""


def test_layers_are_columns_and_executors_are_lanes() -> None:
    graph = parse_graph(TWO_LAYERS.lstrip())
    homes = (frozenset(), *(frozenset({at}) for at in (0, 0, 0, 1)))
    owners = (-1, 0, 0, 0, 1)
    picture = picture_of(graph, split(graph, homes, owners).transfers, homes)
    assert picture.columns == (FIRST, "model.h.0", "model.h.1", LAST)
    assert picture.blocks == (
        Block(0, 0, "activation", 0, 1, "model.wte"),
        Block(0, 0, "weight", 160, 0, "model.wte"),  # once, though the head reads it too
        Block(1, 0, "activation", 0, 2, "model.h.0.attn"),
        Block(1, 0, "kv_cache", 8 * 4 * 4 + 9 * 4 * 4, 1, "model.h.0.attn"),
        Block(1, 0, "weight", 64, 0, "model.h.0.attn"),
        Block(2, 1, "activation", 16, 2, "model.h.1.mlp"),
        Block(2, 1, "weight", 64, 0, "model.h.1.mlp"),
        Block(3, 0, "activation", 0, 1, "model.head"),
        Block(3, 0, "output", 0, 1, "model.head"),
    )
    assert set(picture.edges) == {
        Edge(CLIENT, 0, 0, 0, "input", 8),
        Edge(0, 1, 1, 2, "activation", 16),
        Edge(1, 2, 0, 3, "activation", 16),
        Edge(0, 3, CLIENT, 3, "output", 8),
    }


def test_encoder_and_decoder_have_a_first_layer_each() -> None:
    text = """
graph PLACED holes=[] wants=%1
$0 = float32[4] storage=0
%0 = aten.relu.default($0) | float32[4] module="encoder.block.0" executor=0 layer=0 "layer: …"
%1 = aten.relu.default(%0) | float32[4] module="decoder.block.0" executor=0 layer=0 "layer: …"
"""
    graph = parse_graph(text.lstrip())
    assert picture_of(graph, (), (frozenset({0}),)).columns == ("encoder.block.0", "decoder.block.0")


def test_a_row_outside_of_modules_belongs_to_its_layer() -> None:
    text = """
graph PLACED holes=[] wants=%4
$0 = float32[4] storage=0
%0 = aten.relu.default($0) | float32[4] executor=0 layer=3 "layer: …"
%1 = aten.relu.default(%0) | float32[4] module="top.model.h.3 (Block)" executor=0 layer=3 "layer: …"
%2 = aten.relu.default(%1) | float32[4] executor=0 layer=3 "layer: …"
%3 = aten.relu.default(%2) | float32[4] executor=0
%4 = aten.relu.default(%3) | float32[4] executor=0 layer=4 "layer: …"
"""
    picture = picture_of(parse_graph(text.lstrip()), (), (frozenset({0}),))
    assert picture.columns == ("top.model.h.3", "layer 4")
    assert [(block.column, block.rows) for block in picture.blocks] == [(0, 4), (1, 1)]


def test_without_layers_the_modules_are_the_columns() -> None:
    text = """
graph PLACED holes=[]
$0 = float32[4] storage=0
%0 = aten.relu.default($0) | float32[4] executor=0
%1 = aten.relu.default(%0) | float32[4] module="top.0" executor=0
%2 = aten.relu.default(%1) | float32[4] module="top.2" executor=0
"""
    graph = parse_graph(text.lstrip())
    assert picture_of(graph, (), (frozenset({0}),)).columns == ("program", "top.0", "top.2")


def test_the_plans_of_a_step_are_joined() -> None:
    first = Picture(
        (FIRST, "net.h.0"),
        (Block(0, 0, "weight", 8, 1, "wte"), Block(1, 0, "activation", 4, 3, "net.h.0")),
        (Edge(CLIENT, 0, 0, 0, "input", 8),),
    )
    second = Picture(
        ("net.h.0", "net.h.1", LAST),
        (
            Block(0, 0, "activation", 0, 2, "net.h.0"),
            Block(1, 1, "activation", 4, 3),
            Block(2, 1, "output", 1, 1),
        ),
        (Edge(0, 0, 1, 1, "activation", 4), Edge(1, 2, CLIENT, 2, "output", 1)),
    )
    assert joined([first, second]) == Picture(
        (FIRST, "h.0", "h.1", LAST),
        (
            Block(0, 0, "weight", 8, 1, "wte"),
            Block(1, 0, "activation", 4, 5, "net.h.0"),
            Block(2, 1, "activation", 4, 3),
            Block(3, 1, "output", 1, 1),
        ),
        (
            Edge(CLIENT, 0, 0, 0, "input", 8),
            Edge(0, 1, 1, 2, "activation", 4),
            Edge(1, 3, CLIENT, 3, "output", 1),
        ),
    )
    assert joined([]) == Picture()


def test_names_are_as_short_as_they_are_clear() -> None:
    def columns(*names: str) -> tuple[str, ...]:
        return joined([Picture(names)]).columns

    assert columns("model.layers.0", "model.layers.1") == ("layers.0", "layers.1")
    assert columns("t5.encoder.block.0", "t5.decoder.block.0") == ("encoder.block.0", "decoder.block.0")
    assert columns("layer 0", "h.1") == ("layer 0", "h.1")
