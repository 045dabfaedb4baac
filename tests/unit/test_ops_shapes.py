"""The shape rules' common cases have an answer, unusual ones have none, and no rule needs torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from remora.ops.layout import Meta, contiguous, fresh, viewed_stride
from remora.ops.shapes import DECLARED, SHAPE_RULES, Constants, rules

# Any hashable objects do for dtypes: here, words.
RULES = rules(
    Constants(
        bool="bool",
        int64="int64",
        floating={"float16", "float32"},
        wide={"float32"},
        integral={"int64", "int32"},
        strided="strided",
        contiguous_format="contiguous",
        preserve_format="preserve",
    )
)


def x(*shape: int, dtype: str = "float32") -> Meta:
    return fresh(shape, dtype)


def test_rules_import_no_torch() -> None:
    code = "import sys, remora.ops.shapes as s; assert s.SHAPE_RULES; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_attention_is_declared_as_a_buffer_with_heads_behind_tokens() -> None:
    q, k, v = x(2, 8, 5, 64), x(2, 8, 9, 64), x(2, 8, 9, 32)
    name = "aten.scaled_dot_product_attention.default"
    assert RULES[name](q, k, v) == Meta((2, 8, 5, 32), (5 * 8 * 32, 32, 8 * 32, 1), 0, "float32")
    assert RULES[name](q, x(2, 2, 9, 64), x(2, 2, 9, 32)) is None
    assert RULES[name](q, x(2, 2, 9, 64), x(2, 2, 9, 32), enable_gqa=True) is not None
    assert name in DECLARED <= set(SHAPE_RULES)


def test_a_view_keeps_its_place_in_the_storage() -> None:
    row = RULES["aten.select.int"](x(3, 4, 5), 0, -1)
    assert row == Meta((4, 5), (5, 1), 40, "float32")
    assert RULES["aten.slice.Tensor"](row, 1, 1, 2**63 - 1, 2) == Meta((4, 2), (5, 2), 41, "float32")
    last = RULES["aten.split.Tensor"](row, 2, -1)[-1]
    assert last == Meta((4, 1), (5, 1), 44, "float32")
    assert RULES["aten.transpose.int"](last, 0, 1) == Meta((1, 4), (1, 5), 44, "float32")


def test_elementwise_results_keep_a_permuted_layout() -> None:
    heads = RULES["aten.transpose.int"](x(2, 5, 8, 64), 1, 2)
    assert RULES["aten.mul.Tensor"](heads, x(2, 1, 5, 64)).stride == heads.stride
    assert RULES["aten.neg.default"](heads).stride == heads.stride
    assert RULES["aten.clone.default"](heads, memory_format="contiguous").stride == contiguous(heads.shape)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.add.Tensor", (x(2), x(3))),  # does not broadcast
        ("aten.add.Tensor", (x(2), x(2, dtype="int64"))),  # mixed dtypes
        ("aten.mul.Tensor", (x(2, dtype="int64"), 0.5)),  # becomes the default dtype
        ("aten.div.Tensor", (x(2, dtype="int64"), 2)),
        ("aten.add.Tensor", (x(2, dtype="complex64"), x(2, dtype="complex64"))),
        ("aten.mm.default", (x(2, 3), x(2, 3))),
        ("aten.cat.default", ([x(2, 3), x(2)],)),
        ("aten.view.default", (x(2, 3), [4])),
        ("aten.view.default", (Meta((2, 3), (1, 2), 0, "float32"), [6])),  # needs a copy
        ("aten.transpose.int", (x(2, 3), 0, 2)),
        ("aten.select.int", (x(2, 3), 0, 2)),
        ("aten.expand.default", (x(2, 3), [2, 4])),
        ("aten.zeros.default", ([2],)),  # the default dtype
        ("aten.argmax.default", (x(0),)),
        ("aten.embedding.default", (x(4, 2), x(3))),  # float indices
    ],
)
def test_no_answer_outside_the_simple_case(name: str, args: tuple[object, ...]) -> None:
    assert RULES[name](*args) is None


def test_viewed_stride_splits_and_merges_what_is_adjacent() -> None:
    assert viewed_stride((2, 12), (24, 2), (2, 3, 4)) == (24, 8, 2)
    assert viewed_stride((2, 3, 4), (24, 4, 1), (2, 12)) == (24, 1)
    assert viewed_stride((2, 3, 4), (4, 8, 1), (6, 4)) is None
