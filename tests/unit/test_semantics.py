"""Recognisers on graphs written by hand: what each needs to see, and what it must not be taken in by."""

from __future__ import annotations

import pytest

from remora.errors import PlanError
from remora.ir.annotated import Graph, Meaning, Modality, Phase, Residency
from remora.ir.annotated_text import parse_graph
from remora.semantics.annotate import annotate, stale
from remora.semantics.memory import EMPTY, Memory

SDPA = "aten.scaled_dot_product_attention.default"


def _annotate(text: str, memory: Memory = EMPTY) -> tuple[Graph, Memory]:
    lines = [line.strip() for line in text.strip().splitlines()]
    if not lines[0].startswith("graph"):
        lines.insert(0, "graph CAPTURED")
    return annotate(parse_graph("\n".join(lines)), memory)


def _meanings(text: str, memory: Memory = EMPTY) -> tuple[list[Meaning], list[Meaning]]:
    """Of rows and of slots."""
    graph, _ = _annotate(text, memory)
    return [row.meaning for row in graph.rows], [slot.meaning for slot in graph.slots]


def _residencies(text: str, memory: Memory = EMPTY) -> tuple[list[str], list[str]]:
    rows, slots = _meanings(text, memory)
    return [str(each.residency) for each in rows], [str(each.residency) for each in slots]


GROWN = f"""
    graph CAPTURED template="d" keep=%3,%4
    $0 = float32[1,1,32] storage=0 age=1 from="aten.embedding.default($0, $1)"
    $1 = float32[32,32] storage=1 uploaded
    $2 = float32[1,4,7,8] storage=2 age=1 from="aten.cat.default([$2, %2], int)" in="d"
    $3 = float32[1,4,7,8] storage=3 age=1 from="aten.cat.default([$3, %2], int)" in="d"
    %0 = aten.linear.default($0, $1) | float32[1,1,32]
    %1 = aten.view.default(%0, [int, int, int, int]) | float32[1,1,4,8]<0
    %2 = aten.transpose.int(%1, int, int) | float32[1,4,1,8]<0
    %3 = aten.cat.default([$2, %2], int) | float32[1,4,8,8]
    %4 = aten.cat.default([$3, %2], int) | float32[1,4,8,8]
    %5 = {SDPA}(%2, %3, %4) | float32[1,4,1,8]
"""


def test_what_grows_from_its_own_past_and_is_attended_to_is_a_cache() -> None:
    rows, slots = _meanings(GROWN)
    assert [row.residency for row in rows[3:]] == [
        Residency.KV_CACHE,
        Residency.KV_CACHE,
        Residency.ACTIVATION,
    ]
    assert [slot.residency for slot in slots[1:]] == [
        Residency.WEIGHT,
        Residency.KV_CACHE,
        Residency.KV_CACHE,
    ]
    assert rows[3].evidence[0] == (
        "cache: this row's output of the step before (slot 2) grows in row 3, "
        "read as keys by scaled_dot_product_attention (row 5)"
    )
    assert {row.phase for row in rows} == {Phase.DECODE}


def test_several_tokens_at_once_are_prefill() -> None:
    text = GROWN.replace("[1,1,32]", "[1,5,32]").replace("[1,1,4,8]", "[1,5,4,8]")
    text = text.replace("[1,4,1,8]", "[1,4,5,8]").replace("float32[1,4,8,8]", "float32[1,4,12,8]")
    assert {row.phase for row in _meanings(text)[0]} == {Phase.PREFILL}


def test_cat_that_no_attention_reads_is_no_cache() -> None:
    text = GROWN.replace(f"%5 = {SDPA}(%2, %3, %4)", "%5 = aten.add.Tensor(%3, %4)")
    rows, slots = _residencies(text)
    assert "kv_cache" not in rows + slots
    assert {row.phase for row in _meanings(text)[0]} == {Phase.FORWARD}


def test_attention_over_fresh_keys_has_no_cache() -> None:
    text = GROWN.replace(f"{SDPA}(%2, %3, %4)", f"{SDPA}(%2, %2, %2)")
    rows, slots = _meanings(text)
    assert Residency.KV_CACHE not in {each.residency for each in (*rows, *slots)}
    assert {row.phase for row in rows} == {Phase.FORWARD}


def test_softmax_between_two_products_is_attention_too() -> None:
    eager = """%5 = aten.matmul.default(%2, %3) | float32[1,4,1,8]
    %6 = aten.div.Tensor(%5, float) | float32[1,4,1,8]
    %7 = aten.softmax.int(%6, int) | float32[1,4,1,8]
    %8 = aten.matmul.default(%7, %4) | float32[1,4,1,8]"""
    text = GROWN.replace(f"%5 = {SDPA}(%2, %3, %4) | float32[1,4,1,8]", eager)
    rows, _ = _residencies(text)
    assert rows[3:5] == ["kv_cache", "kv_cache"]


def test_joined_heads_are_no_cache() -> None:
    """Keys put together along the features, as in multi-head latent attention, grow in no dimension of tokens."""
    text = GROWN.replace("float32[1,4,7,8]", "float32[1,4,1,7]").replace(
        "float32[1,4,8,8]", "float32[1,4,1,15]"
    )
    assert "kv_cache" not in _residencies(text)[0]


STATIC = f"""
    $0 = float32[1,4,1,8] storage=0 age=1 from="aten.neg.default($0)"
    $1 = float32[1,4,64,8] storage=1 written age=9 reads=4 from="aten.zeros.default([int], int)"
    $2 = int64[1] storage=2 age=1 from="aten.arange.default(int)"
    %0 = aten.index_copy_.default($1, int, $2, $0) | float32[1,4,64,8]<0 writes=0
    %1 = aten.slice.Tensor($1, int, int, int) | float32[1,4,9,8]<0
    %2 = {SDPA}($0, %1, %1) | float32[1,4,1,8]
"""


def test_memory_that_is_written_at_a_position_and_attended_to_is_a_cache() -> None:
    rows, slots = _residencies(STATIC)
    assert slots == ["activation", "kv_cache", "activation"]
    assert rows == ["kv_cache", "kv_cache", "activation"]
    assert _meanings(STATIC)[0][2].phase is Phase.DECODE


def test_cache_chosen_by_beams_stays_a_cache() -> None:
    rows, _ = _residencies("""
        graph CAPTURED keep=%0
        $0 = float32[4,4,8,8] storage=0 age=1 from="aten.cat.default([$2, %2], int)" kv_cache
        $1 = int64[4] storage=1 age=1 from="aten.neg.default($0)"
        %0 = aten.index_select.default($0, int, $1) | float32[4,4,8,8]
    """)
    assert rows == ["kv_cache"]


CUT = [
    """
    graph CAPTURED template="a" keep=%0
    $0 = float32[0] storage=0 uploaded
    $1 = float32[1,4,5,8] storage=1 age=1 from="aten.neg.default($0)" in="z"
    %0 = aten.cat.default([$0, $1], int) | float32[1,4,5,8]
    """,
    f"""
    graph CAPTURED template="b"
    $0 = float32[1,4,5,8] storage=2 age=1 from="aten.cat.default([$0, $1], int)" in="a" activation
    $1 = float32[1,4,5,8] storage=3 age=1 from="aten.neg.default($0)" in="z"
    %0 = {SDPA}($1, $0, $0) | float32[1,4,5,8]
    """,
]


def test_cut_before_the_attention_is_healed_by_the_next_graph() -> None:
    first, memory = _annotate(CUT[0])
    assert first.rows[0].meaning.residency is Residency.ACTIVATION
    assert not stale(first, memory)
    second, memory = _annotate(CUT[1], memory)
    assert second.slots[0].meaning.residency is Residency.KV_CACHE
    assert second.rows[0].meaning.phase is Phase.PREFILL
    assert stale(first, memory)
    healed, memory = _annotate(CUT[0], memory)
    assert healed.rows[0].meaning.residency is Residency.KV_CACHE
    assert not stale(healed, memory)


def test_equal_rows_of_another_template_teach_nothing() -> None:
    _, memory = _annotate(CUT[0])
    _, memory = _annotate(CUT[1], memory)
    other, _ = _annotate(CUT[0].replace('template="a"', 'template="other"'), memory)
    assert other.rows[0].meaning.residency is Residency.ACTIVATION


ADAM = """
    $0 = float32[8,4] storage=0 uploaded age=3 reads=2
    $1 = float32[8,4] storage=1 age=1 from="aten.mm.default(%1, %2)" backward
    $2 = float32[8,4] storage=2 age=3 from="aten.zeros_like.default($0)"
    %0 = aten.lerp_.Scalar($2, $1, float) | float32[8,4]<0 writes=0
    %1 = aten.sqrt.default($2) | float32[8,4]
    %2 = aten.addcdiv_.default($0, $2, %1) | float32[8,4]<0 writes=0
"""


def test_what_a_gradient_writes_and_a_weight_is_changed_by_is_optimizer_state() -> None:
    rows, slots = _meanings(ADAM)
    assert [slot.residency for slot in slots] == [
        Residency.WEIGHT,
        Residency.ACTIVATION,
        Residency.OPTIMIZER_STATE,
    ]
    assert rows[0].residency is Residency.OPTIMIZER_STATE
    assert {row.phase for row in rows} == {None}


def test_accumulated_gradient_is_no_optimizer_state() -> None:
    rows, slots = _meanings("""
        $0 = float32[8,4] storage=0 age=1 from="aten.mm.default(%1, %2)" backward
        $1 = float32[8,4] storage=1 age=1 from="aten.mm.default(%1, %2)" backward
        %0 = aten.add_.Tensor($0, $1) | float32[8,4]<0 writes=0
    """)
    assert {each.residency for each in (*rows, *slots)} == {Residency.ACTIVATION}
    assert rows[0].phase is Phase.BACKWARD


def test_running_mean_is_neither_weight_nor_state_nor_cache() -> None:
    rows, slots = _residencies("""
        $0 = float32[8] storage=0 uploaded written age=3 reads=2
        $1 = float32[2,8] storage=1 age=1 from="aten.neg.default($0)"
        %0 = aten.mean.dim($1, [int]) | float32[8]
        %1 = aten.mul_.Tensor($0, float) | float32[8]<0 writes=0
        %2 = aten.add_.Tensor($0, %0, alpha=float) | float32[8]<0 writes=0
        %3 = aten.sub.Tensor($1, $0) | float32[2,8]
    """)
    assert slots == ["None", "activation"]
    assert rows == ["activation", "None", "None", "activation"]


def test_uploads_are_weights_by_their_place_and_inputs_otherwise() -> None:
    _, slots = _residencies("""
        $0 = float32[2,3,16] storage=0 uploaded
        $1 = float32[8,16] storage=1 uploaded
        $2 = float32[8] storage=2 uploaded
        $3 = int64[2,3] storage=3 uploaded
        $4 = float32[90,8] storage=4 uploaded
        $5 = float32[1,1,8] storage=5 uploaded
        %0 = aten.linear.default($0, $1, $2) | float32[2,3,8]
        %1 = aten.embedding.default($4, $3) | float32[2,3,8]
        %2 = aten.add.Tensor(%0, %1) | float32[2,3,8]
        %3 = aten.mul.Tensor(%2, $5) | float32[2,3,8]
    """)
    assert slots == ["input", "weight", "weight", "input", "weight", "weight"]


def test_modality_begins_at_inputs_and_follows_the_values() -> None:
    rows, _ = _meanings("""
        $0 = float32[2,3,32,32] storage=0 uploaded
        $1 = float32[8,3,8,8] storage=1 uploaded
        $2 = int64[2,5] storage=2 uploaded
        $3 = float32[90,8] storage=3 uploaded
        $4 = float32[2,1,800] storage=4 uploaded
        $5 = float32[8,1,4] storage=5 uploaded
        %0 = aten.conv2d.default($0, $1) | float32[2,8,4,4]
        %1 = aten.mean.dim(%0, [int, int]) | float32[2,8]
        %2 = aten.embedding.default($3, $2) | float32[2,5,8]
        %3 = aten.mean.dim(%2, [int]) | float32[2,8]
        %4 = aten.conv1d.default($4, $5) | float32[2,8,199]
        %5 = aten.matmul.default(%1, %3) | float32[2,2]
    """)
    assert [row.modality for row in rows] == [
        *(Modality.VISION, Modality.VISION, Modality.TEXT, Modality.TEXT, Modality.AUDIO),
        None,  # where two meet as equals
    ]


def test_tables_looked_up_side_by_side_are_sparse_and_positions_are_text() -> None:
    lookups = "\n".join(f"%{n} = aten.embedding.default(${n}, $3) | float32[2,8]" for n in range(3))
    head = "\n".join(f"${n} = float32[50,8] storage={n} uploaded" for n in range(3))
    slots = f"{head}\n$3 = int64[2] storage=3 uploaded\n{lookups}\n"
    joined = slots + "%3 = aten.cat.default([%0, %1, %2], int) | float32[2,24]"
    assert {row.modality for row in _meanings(joined)[0]} == {Modality.SPARSE}
    added = slots + "%3 = aten.add.Tensor(%0, %1) | float32[2,8]\n%4 = aten.add.Tensor(%3, %2) | float32[2,8]"
    assert {row.modality for row in _meanings(added)[0]} == {Modality.TEXT}


def test_layer_is_the_outermost_index_of_a_list_of_blocks() -> None:
    rows, slots = _meanings("""
        $0 = float32[2,8] storage=0 age=1 from="aten.neg.default($0)"
        $1 = float32[8,8] storage=1 uploaded
        $2 = float32[8,8] storage=2 uploaded
        %0 = aten.linear.default($0, $1) | float32[2,8] module="Net.layers.3.experts.7 (Linear)"
        %1 = aten.linear.default(%0, $2) | float32[2,8] module="Net.head.1 (Linear)"
        %2 = aten.relu.default(%1) | float32[2,8] module="Net.head.2 (ReLU)"
    """)
    assert [row.layer for row in rows] == [3, None, None]
    assert [slot.layer for slot in slots] == [3, 3, None]


def test_blocks_that_repeat_are_layers_where_there_are_no_paths() -> None:
    head = ['$0 = float32[2,8] storage=0 age=1 from="aten.neg.default($0)"']
    head += [f"${n} = float32[8,8] storage={n} uploaded" for n in range(1, 5)]
    rows = ["%0 = aten.neg.default($0) | float32[2,8]"]
    for n in range(4):
        rows += [
            f"%{len(rows)} = aten.linear.default(%{len(rows) - 1}, ${n + 1}) | float32[2,8]",
            f"%{len(rows) + 1} = aten.relu.default(%{len(rows)}) | float32[2,8]",
            f"%{len(rows) + 2} = aten.mul.Tensor(%{len(rows) + 1}, %{len(rows)}) | float32[2,8]",
        ]
    layers = [row.layer for row in _meanings("\n".join(head + rows))[0]]
    assert layers == [None, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_blocks_of_equal_ops_that_are_wired_otherwise_are_not_the_same_block() -> None:
    head = ['$0 = float32[2,8] storage=0 age=1 from="aten.neg.default($0)"']
    head += [f"${n} = float32[8,8] storage={n} uploaded" for n in range(1, 5)]
    rows = ["%0 = aten.neg.default($0) | float32[2,8]"]
    for n in range(4):
        at = len(rows)
        rows += [
            f"%{at} = aten.linear.default(%{at - 1}, ${n + 1}) | float32[2,8]",
            f"%{at + 1} = aten.relu.default(%{at}) | float32[2,8]",
            f"%{at + 2} = aten.mul.Tensor(%{at + 1}, %{at + n % 2}) | float32[2,8]",
        ]
    layers = [row.layer for row in _meanings("\n".join(head + rows))[0]]
    assert layers == [None, *[0] * 6, *[1] * 6]


def test_momentum_that_began_as_a_copy_of_the_gradient_is_optimizer_state() -> None:
    _, slots = _residencies("""
        $0 = float32[8,4] storage=0 uploaded written age=3 reads=2 weight
        $1 = float32[8,4] storage=1 age=1 from="aten.mm.default(%1, %2)" backward
        $2 = float32[8,4] storage=2 age=3 reads=1 from="aten.clone.default(%4)" backward
        %0 = aten.mul_.Tensor($2, float) | float32[8,4]<0 writes=0
        %1 = aten.add_.Tensor($2, $1) | float32[8,4]<0 writes=0
        %2 = aten.add_.Tensor($0, $2, alpha=float) | float32[8,4]<0 writes=0
    """)
    assert slots == ["weight", "activation", "optimizer_state"]


def test_graph_that_breaks_a_stage_rule_is_refused() -> None:
    with pytest.raises(PlanError, match=r"row 0 .* reads slot 4 of 1"):
        _annotate("$0 = float32[2] storage=0\n%0 = aten.add.Tensor($0, $4) | float32[2]")


def test_what_the_client_fetches_is_output() -> None:
    rows, _ = _residencies("""
        graph CAPTURED wants=%1
        $0 = float32[2,9] storage=0 age=1 from="aten.neg.default($0)"
        %0 = aten.exp.default($0) | float32[2,9]
        %1 = aten.argmax.default(%0, int) | int64[2]
    """)
    assert rows == ["activation", "output"]
