"""Cost of single rows, against numbers worked out by hand."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.text import parse_template
from remora.ops.cost import RULES, Kind, Work, base_name, graph_work, work

F4 = "float32"


def f4(*shape: int) -> Facts:
    return Facts(F4, shape, 4)


def i8(*shape: int) -> Facts:
    return Facts("int64", shape, 8)


def cost(line: str, inputs, outs, holes=(), shares=None, writes=()) -> Work:
    node = parse_template(f"%0 = {line}\n").nodes[0]
    return work(Row(node, tuple(outs), tuple(shares or [None] * len(outs)), writes), inputs, holes)


M, K, N = 5, 7, 11
PRODUCTS = [
    ("aten.mm.default($0, $1)", [f4(M, K), f4(K, N)], f4(M, N), 2 * M * K * N),
    ("aten.addmm.default($0, $1, $2)", [f4(N), f4(M, K), f4(K, N)], f4(M, N), 2 * M * K * N),
    ("aten.bmm.default($0, $1)", [f4(3, M, K), f4(3, K, N)], f4(3, M, N), 2 * 3 * M * K * N),
    ("aten.baddbmm.default($0, $1, $2)", [f4(3, M, N), f4(3, M, K), f4(3, K, N)], f4(3, M, N), 6 * M * K * N),
    ("aten.linear.default($0, $1, $2)", [f4(2, M, K), f4(N, K), f4(N)], f4(2, M, N), 2 * 2 * M * K * N),
    ("aten.matmul.default($0, $1)", [f4(3, M, K), f4(K, N)], f4(3, M, N), 2 * 3 * M * K * N),
    ("aten.matmul.default($0, $1)", [f4(K), f4(K)], f4(), 2 * K),
    ("aten.tensordot.default($0, $1, [int], [int])", [f4(M, K), f4(K, N)], f4(M, N), 2 * M * K * N),
    (
        "aten.bilinear.default($0, $1, $2)",
        [f4(2, K), f4(2, N), f4(M, K, N)],
        f4(2, M),
        2 * 2 * M * N * (K + 1),
    ),
    ("aten._grouped_mm.default($0, $1, $2)", [f4(M, K), f4(3, K, N), i8(3)], f4(M, N), 2 * M * K * N),
    ("aten._grouped_mm.default($0, $1, $2)", [f4(M, 12), f4(12, N), i8(3)], f4(3, M, N), 2 * M * 12 * N),
]


@pytest.mark.parametrize(("line", "inputs", "out", "flops"), PRODUCTS)
def test_products(line, inputs, out, flops):
    holes = (0,) * line.count("int")
    done = cost(line, inputs, [out], holes)
    read = sum(facts.nbytes for facts in inputs)
    assert done == Work(flops, read, out.nbytes, Kind.PRODUCT, 1, F4)


CONVOLUTION = (
    "aten.convolution.default($0, $1, None, [int, int], [int, int], [int, int], {}, [int, int], int)"
)


@pytest.mark.parametrize(
    ("transposed", "x", "weight", "out", "flops"),
    [
        (False, f4(2, 8, 9, 9), f4(16, 8, 3, 3), f4(2, 16, 7, 7), 2 * 2 * 16 * 7 * 7 * 8 * 9),
        (False, f4(2, 8, 9, 9), f4(16, 2, 3, 3), f4(2, 16, 7, 7), 2 * 2 * 16 * 7 * 7 * 2 * 9),  # 4 groups
        (True, f4(2, 16, 7, 7), f4(16, 8, 3, 3), f4(2, 8, 9, 9), 2 * 2 * 16 * 7 * 7 * 8 * 9),
    ],
)
def test_convolution(transposed, x, weight, out, flops):
    holes = (1, 1, 0, 0, 1, 1, 0, 0, 1)
    done = cost(CONVOLUTION.format(transposed), [x, weight], [out], holes)
    assert done == Work(flops, x.nbytes + weight.nbytes, out.nbytes, Kind.CONVOLUTION, 1, F4)


@pytest.mark.parametrize(("mask", "gradients"), [("True, True", 2), ("False, True", 1), ("False, False", 0)])
def test_convolution_backward_counts_the_gradients_that_are_asked_for(mask, gradients):
    line = (
        "aten.convolution_backward.default($0, $1, $2, None, [int, int], [int, int], [int, int], False, "
        f"[int, int], int, [{mask}, False])"
    )
    out, x, weight = f4(2, 16, 7, 7), f4(2, 8, 9, 9), f4(16, 8, 3, 3)
    done = cost(line, [out, x, weight], [x, weight, None], (1,) * 9)
    assert done.flops == gradients * 2 * 2 * 16 * 7 * 7 * 8 * 9


@pytest.mark.parametrize(
    ("causal", "tokens", "keys", "pairs"),
    [
        ("False", 4, 6, 24),
        ("True", 4, 4, 10),
        ("True", 2, 6, 3),
        ("True", 6, 4, 10 + 2 * 4),
        ("False", 1, 512, 512),
    ],
)
def test_attention_counts_the_pairs_that_see_each_other(causal, tokens, keys, pairs):
    q, kv = f4(2, 3, tokens, 8), f4(2, 3, keys, 8)
    done = cost(
        f"aten.scaled_dot_product_attention.default($0, $1, $2, None, float, {causal})",
        [q, kv, kv],
        [q],
        (0.0,),
    )
    assert done.flops == 2 * 2 * 3 * pairs * (8 + 8)
    assert done.bytes_read == q.nbytes + 2 * kv.nbytes
    assert done.kind is Kind.ATTENTION


def test_grouped_heads_read_their_own_keys_alone():
    q, kv = f4(1, 8, 1, 16), f4(1, 2, 100, 16)
    line = "aten.scaled_dot_product_attention.default($0, $1, $2, enable_gqa=True)"
    done = cost(line, [q, kv, kv], [q])
    assert done.bytes_read == q.nbytes + 2 * kv.nbytes
    assert done.flops == 2 * 8 * 100 * 32


def test_an_encoder_s_layer_in_one_row_is_counted_by_its_weights_and_pairs_of_tokens():
    b, t, e, f = 2, 7, 8, 32
    x, norm = f4(b, t, e), [f4(e)] * 4
    attention, mlp = [f4(3 * e, e), f4(3 * e), f4(e, e), f4(e)], [f4(f, e), f4(f), f4(e, f), f4(e)]
    line = (
        "aten._transformer_encoder_layer_fwd.default($0, int, int, $1, $2, $3, $4, False, False, float, "
        "$5, $6, $7, $8, $9, $10, $11, $12)"
    )
    done = cost(line, [x, *attention, *norm, *mlp], [x], (e, 2, 1e-5))
    assert done.flops == 2 * b * t * (4 * e * e + 2 * e * f) + 4 * b * t * t * e
    assert done.kind is Kind.PRODUCT


def test_a_recurrent_network_is_counted_by_its_weights_and_tokens():
    t, b, i, h = 5, 3, 4, 6
    line = "aten.lstm.input($0, [$1, $2], [$3, $4, $5, $6], True, int, float, False, False, False)"
    weights = [f4(4 * h, i), f4(4 * h, h), f4(4 * h), f4(4 * h)]
    state = f4(1, b, h)
    done = cost(line, [f4(t, b, i), state, state, *weights], [f4(t, b, h), state, state], (1, 0.0))
    assert done.flops == 2 * t * b * (4 * h * i + 4 * h * h)
    assert done.kernels == 4 * t


def test_look_ups_read_the_rows_and_not_the_table():
    table, ids = f4(50257, 768), i8(1, 3)
    done = cost("aten.embedding.default($0, $1)", [table, ids], [f4(1, 3, 768)])
    assert (done.bytes_read, done.bytes_written) == (3 * 768 * 4 + 3 * 8, 3 * 768 * 4)
    done = cost("aten.index.Tensor($0, [$1])", [table, i8(3)], [f4(3, 768)])
    assert done.bytes_read == 3 * 768 * 4 + 3 * 8
    line = "aten.embedding_bag.default($0, $1, $2)"
    done = cost(line, [table, i8(10), i8(2)], [f4(2, 768), i8(0), i8(2), i8(2)])
    assert done.bytes_read == 10 * 768 * 4 + 10 * 8 + 2 * 8


def test_writes_by_index_touch_only_those_places():
    cache, rows = f4(1, 12, 1024, 64), f4(1, 12, 1, 64)
    line = "aten.index_copy_.default($0, int, $1, $2)"
    done = cost(line, [cache, i8(1), rows], [cache], (2,), [0], (0,))
    assert (done.bytes_read, done.bytes_written) == (rows.nbytes + 8, rows.nbytes)
    functional = cost("aten.index_copy.default($0, int, $1, $2)", [cache, i8(1), rows], [cache], (2,))
    assert functional.bytes_written == cache.nbytes


def test_in_place_ops_read_and_write_their_target_and_overwriting_ones_only_write():
    x, y = f4(10, 10), f4(10, 10)
    added = cost("aten.add_.Tensor($0, $1)", [x, y], [x], (), [0], (0,))
    assert (added.flops, added.bytes_read, added.bytes_written) == (100, 800, 400)
    copied = cost("aten.copy_.default($0, $1)", [x, y], [x], (), [0], (0,))
    assert (copied.flops, copied.bytes_read, copied.bytes_written) == (0, 400, 400)
    zeroed = cost("aten.zero_.default($0)", [x], [x], (), [0], (0,))
    assert (zeroed.bytes_read, zeroed.bytes_written) == (0, 400)


def test_lists_of_tensors():
    x = f4(100)
    line = "aten._foreach_add_.List([$0, $1], [$2, $3])"
    done = cost(line, [x, x, x, x], [], (), [], (0, 1))
    assert (done.flops, done.bytes_read, done.bytes_written, done.kernels) == (200, 1600, 800, 2)
    joined = cost("aten.cat.default([$0, $1, $2])", [x, x, x], [f4(300)])
    assert (joined.bytes_read, joined.bytes_written) == (1200, 1200)


def test_views_and_unwritten_memory_cost_nothing():
    x = f4(10, 10)
    for line in ("aten.view.default($0, [int])", "aten.t.default($0)", "aten.detach.default($0)"):
        done = cost(line, [x], [f4(100)], (100,) * line.count("int"), [0])
        assert done == Work(0, 0, 0, Kind.FREE)
    assert cost("aten.empty.memory_format([int])", [], [x], (100,)).nbytes == 0
    assert cost("aten.unsqueeze_.default($0, int)", [x], [f4(1, 10, 10)], (0,), [0], (0,)).nbytes == 0


def test_a_tensor_that_comes_in_twice_is_read_once():
    x = f4(10, 10)
    assert cost("aten.mul.Tensor($0, $0)", [x, x], [x]).bytes_read == 400


def test_what_only_the_data_tells_is_at_most_what_came_in():
    done = cost("aten.nonzero.default($0)", [f4(100)], [None])
    assert done.bytes_written == 400


def _row(line: str, outs, shares=(None,), writes=()) -> Row:
    return Row(parse_template(f"%0 = {line}\n").nodes[0], outs, shares, writes)


def test_an_expanded_tensor_reads_what_it_covers():
    text = "%0 = aten.expand.default($0, [int, int])\n%1 = aten.add.Tensor(%0, $1)\n"
    nodes = parse_template(text).nodes
    rows = (Row(nodes[0], (f4(1000, 10),), (0,)), Row(nodes[1], (f4(1000, 10),), (None,)))
    graph = Graph(rows, (Outside(f4(1, 10), 0), Outside(f4(1000, 10), 1)), (1000, 10))
    view, added = graph_work(graph)
    assert view.nbytes == 0
    assert added.bytes_read == 40 + 40_000


def test_holes_go_to_their_rows():
    text = "%0 = aten.topk.default($0, int)\n%1 = aten.topk.default($0, int)\n"
    nodes = parse_template(text).nodes
    rows = tuple(Row(node, (f4(k), i8(k)), (None, None)) for node, k in zip(nodes, (1, 512), strict=True))
    few, many = graph_work(Graph(rows, (Outside(f4(1024), 0),), (1, 512)))
    assert many.flops > few.flops + 512


def test_names():
    assert base_name("aten.add_.Tensor") == "add"
    assert base_name("aten.__and__.Tensor") == "__and__"
    assert base_name("aten._foreach_add_.List") == "_foreach_add"
    assert all(not name.endswith("_") for name in RULES)


SIZES = st.lists(st.integers(1, 40), min_size=2, max_size=3)
LINES = [
    ("aten.add.Tensor($0, $0)", lambda s: ([f4(*s)], [f4(*s)], ())),
    ("aten.gelu.default($0)", lambda s: ([f4(*s)], [f4(*s)], ())),
    ("aten.softmax.int($0, int)", lambda s: ([f4(*s)], [f4(*s)], (-1,))),
    ("aten.sum.default($0)", lambda s: ([f4(*s)], [f4()], ())),
    ("aten.cumsum.default($0, int)", lambda s: ([f4(*s)], [f4(*s)], (0,))),
    ("aten.sort.default($0)", lambda s: ([f4(*s)], [f4(*s), i8(*s)], ())),
    ("aten._fft_c2c.default($0, [int], int, True)", lambda s: ([f4(*s)], [f4(*s)], (0, 0))),
    ("aten.mm.default($0, $1)", lambda s: ([f4(s[0], s[1]), f4(s[1], s[-1])], [f4(s[0], s[-1])], ())),
    ("aten.linalg_inv_ex.default($0)", lambda s: ([f4(s[0], s[0])], [f4(s[0], s[0]), i8()], ())),
    ("aten.embedding.default($0, $1)", lambda s: ([f4(100, s[0]), i8(s[1])], [f4(s[1], s[0])], ())),
    ("aten.unheard_of.default($0)", lambda s: ([f4(*s)], [f4(*s)], ())),
]


@given(st.sampled_from(LINES), SIZES, st.integers(0, 2))
def test_costs_grow_with_sizes(case, sizes, grown):
    line, shapes = case
    larger = [size + (i == grown % len(sizes)) for i, size in enumerate(sizes)]
    small, large = (
        cost(line, ins * (line.count("$0") if len(ins) == 1 else 1), outs, holes)
        for ins, outs, holes in (shapes(sizes), shapes(larger))
    )
    assert min(small.flops, small.bytes_read, small.bytes_written) >= 0
    assert large.flops >= small.flops
    assert large.bytes_read >= small.bytes_read
    assert large.bytes_written >= small.bytes_written


@given(SIZES)
def test_work_is_at_least_the_bytes_that_must_move(sizes):
    done = cost("aten.add.Tensor($0, $1)", [f4(*sizes), f4(*sizes)], [f4(*sizes)])
    assert done.nbytes == 3 * 4 * prod(sizes)
