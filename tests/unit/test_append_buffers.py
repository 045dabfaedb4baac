"""A tensor that grows by `cat` is written in place, and nothing that lives can tell."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from remora.executor.worker import append
from remora.executor.worker.append import exact, grown, in_buffer
from remora.executor.worker.program import Failure, Program, compile_program, run
from remora.executor.worker.readers import readers
from remora.executor.worker.values import Values
from remora.ir.graph import Template
from remora.ir.node import FREE, Hole, Items, Node, Ref, Slot

INT = Hole("int")
CPU = torch.device("cpu")
GROW = Node("aten.cat.default", (Items((Slot(0), Slot(1))), INT))
ATTENTION = Node("aten.scaled_dot_product_attention.default", (Slot(2), Ref(0), Slot(0)))
H, D = 2, 4


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(append, "LEAST_NBYTES", 64)


def compiled(*nodes: Node, keep=((0, 0),), room_nbytes=lambda: 1 << 40) -> Program:
    return compile_program(Template(nodes), keep, CPU, None, room_nbytes)


def result(program: Program, slots: list, holes=(2,)) -> torch.Tensor:
    with torch.inference_mode():
        made = run(program, slots, list(holes), memoryview(bytearray(4)).cast("I"), [0])
    return made[program.keep[0][2]]


def rows(n: int, start: int = 0) -> torch.Tensor:
    """[1, H, n, D], each row different."""
    counted = torch.arange(start, start + n, dtype=torch.float32)
    return (counted[None, None, :, None] + torch.arange(H)[None, :, None, None] * 1000).expand(1, H, n, D)


class Cache:
    """A cache beside its plain twin."""

    def __init__(self, program: Program, n: int = 20) -> None:
        self.program, self.value, self.expected = program, rows(n).clone(), rows(n).clone()

    def grow(self, new: torch.Tensor) -> torch.Tensor:
        self.value = result(self.program, [self.value, new])
        self.expected = torch.cat([self.expected, new], -2)
        self.check()
        return self.value

    def check(self) -> None:
        assert torch.equal(self.value, self.expected)


def test_the_second_growth_makes_room_and_the_next_ones_use_it():
    cache = Cache(compiled(GROW))
    assert not in_buffer(cache.grow(rows(1, 20)))
    first = cache.grow(rows(1, 21))
    assert in_buffer(first)
    pointers = {cache.grow(rows(1, n)).data_ptr() for n in range(22, 24)}
    assert pointers == {first.data_ptr()}
    assert torch.equal(first, cache.expected[:, :, :22])
    assert exact(first).is_contiguous()
    assert exact(first).untyped_storage().nbytes() == first.nbytes


def test_a_buffer_grows_by_blocks():
    cache = Cache(compiled(GROW), 1000)
    made = [cache.grow(rows(1, 1000 + n)) for n in range(200)]
    assert len({value.data_ptr() for value in made[1:]}) <= 4
    spare = made[-1].untyped_storage().nbytes() / made[-1].nbytes
    assert 1 <= spare < 1.1
    for n, value in enumerate(made):
        assert torch.equal(value, cache.expected[:, :, : 1001 + n])


def test_what_ends_before_the_mark_forks():
    cache = Cache(compiled(GROW))
    cache.grow(rows(1, 20))
    stem = cache.grow(rows(1, 21))
    long = cache.grow(rows(1, 22))
    other = result(cache.program, [stem, rows(1, 99)])
    assert other.untyped_storage().data_ptr() != long.untyped_storage().data_ptr()
    cache.check()
    assert torch.equal(other, torch.cat([rows(22), rows(1, 99)], -2))


def test_the_mark_goes_back_when_nothing_sees_more():
    """What ran ahead is undone: its names are dropped, and the same length comes again with other values."""
    cache = Cache(compiled(GROW))
    cache.grow(rows(1, 20))
    stem = cache.grow(rows(1, 21))
    undone = [cache.grow(rows(1, 22)), cache.grow(rows(1, 23))]
    seen = undone[0].transpose(1, 2)
    cache.value = None
    del undone[:]
    forked = result(cache.program, [stem, rows(1, 98)])
    assert forked.data_ptr() != stem.data_ptr()  # `seen` still sees what would be overwritten
    assert torch.equal(seen[0, -1, 0], rows(1, 22)[0, 0, 0])
    del seen, forked
    again = result(cache.program, [stem, rows(1, 99)])
    assert again.data_ptr() == stem.data_ptr()
    assert torch.equal(again, torch.cat([rows(22), rows(1, 99)], -2))
    assert torch.equal(stem, rows(22))


def test_a_row_with_a_strict_reader_stays_plain():
    for op in ("aten.sin.default", "aten.relu_.default", "aten.alias.default"):
        program = compiled(GROW, Node(op, (Ref(0),)))
        cache = Cache(program)
        for n in range(20, 24):
            cache.value = cache.value.abs()
            cache.expected = cache.expected.abs()
            assert not in_buffer(cache.grow(rows(1, n)))


def slots_of(*nodes: Node, keep=()) -> tuple[int, ...]:
    return readers(Template(nodes), keep).strict


def test_readers_that_copy_may_have_views():
    chain = (
        Node("aten.unsqueeze.default", (Slot(0), INT)),
        Node("aten.expand.default", (Ref(0), Items((INT, INT, INT, INT, INT)))),
        Node("aten.clone.default", (Ref(1),)),
    )
    assert slots_of(*chain, keep=((2, 0),)) == ()
    assert slots_of(*chain, keep=((1, 0),)) == (0,)  # a view that lives on could be written
    assert slots_of(*chain[:2], Node("aten.mul_.Tensor", (Ref(1), Slot(1)))) == (0, 1)
    assert slots_of(*chain[:2], Node("aten.clone.default", (Ref(1),), (), (FREE,))) == (0,)
    assert slots_of(Node("aten.index_select.default", (Slot(0), INT, Slot(1)))) == (1,)
    attention = Node("aten.scaled_dot_product_attention.default", (Slot(0), Slot(1), Slot(2), Slot(3)))
    assert slots_of(attention) == (0, 3)
    assert slots_of(Node("aten.view.default", (Slot(0), Items((INT,))))) == (0,)
    assert slots_of(Node("aten.index.Tensor", (Slot(0), Items((Slot(1),))))) == (0, 1)


def test_only_what_lives_on_and_is_believed_contiguous_grows():
    assert readers(Template((GROW,)), ((0, 0),)).growing == {0}
    assert not readers(Template((GROW,)), ()).growing
    again = Node(GROW.op, (Items((Ref(0), Slot(1))), INT))
    assert readers(Template((GROW, again)), ((1, 0),)).growing == {0, 1}
    transposed = Node(GROW.op, GROW.args, (), ((0, 2, 1, 3),))
    assert not readers(Template((transposed,)), ((0, 0),)).growing


@pytest.mark.parametrize(
    ("old", "new", "dim"),
    [
        (torch.zeros(1, 2, 20, 4), torch.zeros(1, 2, 1, 4, dtype=torch.float64), 2),  # promoted
        (torch.zeros(0), torch.zeros(1, 2, 20, 4), 2),  # an empty one is left out
        (torch.zeros(1, 2, 20, 4), torch.zeros(0), 2),
        (torch.zeros(1, 2, 4, 20), torch.zeros(1, 2, 4, 1), 3),
        (torch.zeros(1, 2, 20, 1), torch.zeros(1, 2, 1, 1), 2),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), 2),  # no small step
        (torch.zeros(1, 2, 20, 4, dtype=torch.complex64).conj(), torch.zeros(1, 2, 1, 4).cfloat(), 2),
    ],
)
def test_other_cats_are_left_alone(old, new, dim):
    program = compiled(GROW)
    made = result(program, [old, new], [dim])
    assert grown(made) is None
    assert made.is_contiguous()
    assert torch.equal(made, torch.cat([old, new], dim))


@pytest.mark.parametrize(
    ("new", "dim"), [(torch.zeros(1, 3, 1, 4), 2), (torch.zeros(1, 2, 1, 4), 7), (torch.zeros(2, 1, 4), -2)]
)
def test_errors_are_pytorchs(new, dim):
    with pytest.raises((RuntimeError, IndexError)) as expected:
        torch.cat([rows(20), new], dim)
    with pytest.raises(Failure) as failure:
        result(compiled(GROW), [rows(20), new], [dim])
    assert str(failure.value.cause) == str(expected.value)


def test_beams_are_reordered_into_a_buffer_with_room():
    select = compiled(Node("aten.index_select.default", (Slot(0), INT, Slot(1))))
    cache = Cache(compiled(GROW))
    cache.value = cache.expected = torch.rand(3, H, 20, D)
    for n in range(4):
        cache.grow(torch.rand(3, H, 1, D))
        order = torch.tensor([n % 3, 0, 2])
        before = cache.value
        cache.value = result(select, [cache.value, order], [0])
        cache.expected = cache.expected[order]
        cache.check()
        assert in_buffer(cache.value)
        assert before.data_ptr() != cache.value.data_ptr()
        chosen = cache.value
        cache.grow(torch.rand(3, H, 1, D))
        assert cache.value.data_ptr() == chosen.data_ptr()
        assert cache.value.untyped_storage().nbytes() == cache.value.nbytes  # nothing to spare


def test_without_room_it_is_a_plain_cat():
    for room_nbytes in (0, 1000):
        cache = Cache(compiled(GROW, room_nbytes=lambda: room_nbytes))  # noqa: B023
        for n in range(20, 24):
            assert not in_buffer(cache.grow(rows(1, n)))


def test_a_failed_allocation_is_a_plain_cat(monkeypatch):
    def fail(*args):
        raise RuntimeError("out of memory")

    cache = Cache(compiled(GROW))
    cache.grow(rows(1, 20))
    with monkeypatch.context() as patch:
        patch.setattr(append, "Buffer", fail)
        assert not in_buffer(cache.grow(rows(1, 21)))
    assert in_buffer(cache.grow(rows(1, 22)))


def test_a_row_whose_results_are_copied_out_stops():
    cache = Cache(compiled(GROW))
    views = 0
    for n in range(20, 80):
        value = cache.grow(rows(1, n))
        if in_buffer(value):
            views += 1
            cache.value = append.copied_out(value)
    assert 0 < views < 10
    assert not in_buffer(cache.grow(rows(1, 80)))


def kept_cache(n: int) -> tuple[Values, torch.Tensor]:
    cache, values = Cache(compiled(GROW), n), Values()
    for step in range(2):
        cache.grow(rows(1, n + step))
    with torch.inference_mode():
        values.keep_grown((1, 0, 0), cache.value)
    return values, cache.expected


def test_spare_room_counts_and_is_given_back_when_memory_is_short():
    values, expected = kept_cache(100)
    spare_nbytes = values.used_nbytes - expected.nbytes
    assert 0 < spare_nbytes <= 24 * H * D * 4 + 7 * H * D * 4
    values.trim()
    assert values.used_nbytes == values.held_nbytes == expected.nbytes
    assert not values.loose
    assert torch.equal(values.tensors[1, 0, 0], expected)


def test_a_buffer_that_others_see_is_not_trimmed():
    values, expected = kept_cache(100)
    program = compiled(GROW)
    longer = result(program, [values.tensors[1, 0, 0], rows(1, 102)])
    values.keep_grown((2, 0, 0), longer)
    used_nbytes = values.used_nbytes
    values.trim()
    assert values.used_nbytes == used_nbytes
    values.copy_out((1, 0, 0))
    assert values.used_nbytes == used_nbytes + expected.nbytes
    values.free((2, 0, 0))
    assert values.used_nbytes == expected.nbytes


# B batch, n rows, q queries


def attention_cases():
    draw = torch.Generator().manual_seed(1)

    def one_of(*items):
        return items[int(torch.randint(len(items), (), generator=draw))]

    for _ in range(400):
        kv_heads, groups = one_of(1, 2, 4), one_of(1, 1, 3)
        yield {
            "dtype": one_of(torch.float32, torch.bfloat16, torch.float16, torch.float64),
            "q": (one_of(1, 2), kv_heads * groups, one_of(1, 1, 3, 17, 40), one_of(2, 3, 16, 64, 80)),
            "kv_heads": kv_heads,
            "n": one_of(1, 2, 17, 64, 131, 513),
            "spare": one_of(1, 3, 64),
            "mask": one_of(None, "bool", "float", "causal"),
            "rows_first": one_of(False, False, True),
            "grouped": groups > 1,
        }


def test_attention_cannot_tell_a_view_from_a_copy():
    """The premise of it all."""
    for case in attention_cases():
        batch, _, n_q, width = case["q"]
        query = torch.randn(case["q"], dtype=case["dtype"])
        options = {"enable_gqa": True} if case["grouped"] else {}
        if case["mask"] == "causal":
            options["is_causal"] = True
        elif case["mask"]:
            mask = torch.randn(batch, 1, n_q, case["n"])
            options["attn_mask"] = mask > -1 if case["mask"] == "bool" else mask.to(case["dtype"])
        views = []
        for _ in range(2):
            sizes = [batch, case["kv_heads"], case["n"], width]
            dim = 2
            if case["rows_first"]:  # grown as [batch, rows, heads, width], and transposed for attention
                sizes[1], sizes[2], dim = sizes[2], sizes[1], 1
            sizes[dim] += case["spare"]
            memory = torch.full(sizes, float("nan"), dtype=case["dtype"])
            views.append(memory.narrow(dim, 0, case["n"]))
            views[-1].copy_(torch.randn(views[-1].shape))
        copies = [exact(view) for view in views]
        if case["rows_first"]:
            views, copies = ([t.transpose(1, 2) for t in them] for them in (views, copies))
        attend = torch.nn.functional.scaled_dot_product_attention
        found, expected = attend(query, *views, **options), attend(query, *copies, **options)
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7)), case
        assert found.stride() == expected.stride(), case
