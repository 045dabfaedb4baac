"""Seconds of rows, parts and placed graphs, on devices whose rates are round numbers."""

from __future__ import annotations

from math import sqrt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.text import parse_template
from remora.ops.cost import Kind, Work, graph_work
from remora.plan.devices import Curve, Device, Link, Pool, Rates, flat
from remora.plan.duration import Duration, Estimate, difference, total
from remora.plan.estimate import cold_nbytes, costs
from remora.plan.schedule import Need, Piece, schedule

MB = 1 << 20


def device(name: str = "d", call_s: float = 0.0, run_s: float = 0.0, **more) -> Device:
    """1 GFLOP/s, 1 MB/s from memory, 10 MB/s from cache."""
    product = Rates(0.0, flat(10 * MB), flat(MB), {"float32": flat(1e9)}, 0.1)
    move = Rates(0.0, flat(10 * MB), flat(MB), {}, 0.2)
    return Device(name, 1 << 30, call_s, run_s, {Kind.PRODUCT: product, Kind.MOVE: move}, sigma=0.5, **more)


def chain(text: str, facts: list[Facts], slots: list[Facts]) -> Graph:
    nodes = parse_template(text).nodes
    rows = tuple(Row(node, (out,), (None,)) for node, out in zip(nodes, facts, strict=True))
    return Graph(rows, tuple(Outside(found, number) for number, found in enumerate(slots)))


def f4(*shape: int) -> Facts:
    return Facts("float32", shape, 4)


def test_a_row_is_bound_by_arithmetic_or_by_bytes():
    d = device()
    assert d.kernel_s(Work(10**9, MB, 0, Kind.PRODUCT, 1, "float32"), MB) == pytest.approx(1.0)
    assert d.kernel_s(Work(10**6, 4 * MB, 0, Kind.PRODUCT, 1, "float32"), 4 * MB) == pytest.approx(4.0)
    assert d.kernel_s(Work(10**6, 4 * MB, 0, Kind.PRODUCT, 1, "float32"), MB) == pytest.approx(1.3)
    assert d.kernel_s(Work(0, 0, 0, Kind.FREE)) == 0.0


def test_dtypes_and_kinds_that_nobody_measured_borrow():
    d = device()
    work = Work(10**9, 0, 0, Kind.PRODUCT, 1, "float64")
    assert d.kernel_s(work) == pytest.approx(2.0)  # twice as wide
    assert d.kernel_s(Work(10**9, 0, 0, Kind.PRODUCT, 1, "bfloat16")) == pytest.approx(1.0)
    assert d.kernel_s(Work(10**9, 0, 0, Kind.CONVOLUTION, 1, "float32")) == pytest.approx(1.0)
    assert d.kernel_s(Work(10**9, 0, 0, Kind.FACTOR, 1, "float32")) > 2.0
    assert d.sigma_of(Kind.CONVOLUTION) == 0.5 > d.sigma_of(Kind.PRODUCT)


def test_a_curve_is_log_linear_between_its_points_and_flat_beyond():
    curve = Curve(((1.0, 10.0), (100.0, 1000.0)))
    assert [curve.at(x) for x in (0.1, 1, 10, 100, 1e9)] == pytest.approx([10, 10, 100, 1000, 1000])
    with pytest.raises(ValueError, match="ascend"):
        Curve(((2.0, 1.0), (1.0, 1.0)))


def test_a_device_must_say_how_fast_it_moves_and_multiplies():
    with pytest.raises(ValueError, match="rate for product"):
        Device("d", 1, 0.0, 0.0, {Kind.MOVE: Rates(0.0, flat(1.0), flat(1.0))})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(flat(1.0)).replace(b"1.0]", b"-1.0]"), type=Curve)


TWO = "%0 = aten.neg.default($0)\n%1 = aten.neg.default(%0)\n"


def test_calls_add_on_a_host_that_computes_and_hide_behind_kernels_elsewhere():
    graph = chain(TWO, [f4(MB // 4)] * 2, [f4(MB // 4)])  # each row moves 2 MB: 2 s from memory
    (own,) = costs(graph, [device(call_s=0.5, run_s=0.25)]).kernel_s
    assert own == pytest.approx((2.0, 2.0))
    assert costs(graph, [device(call_s=0.5, run_s=0.25)]).part(0).duration.seconds == pytest.approx(5.25)
    hidden = costs(graph, [device(call_s=0.5, run_s=0.25, asynchronous=True)])
    assert hidden.part(0).duration.seconds == pytest.approx(0.25 + 0.5 + 4.0)  # the second launch is hidden
    launches = costs(graph, [device(call_s=5.0, asynchronous=True)])
    assert launches.part(0).duration.seconds == pytest.approx(
        10.0 + 2.0
    )  # bound by launches, then the last kernel


def test_a_part_counts_its_own_rows():
    graph = chain(TWO, [f4(MB // 4)] * 2, [f4(MB // 4)])
    found = costs(graph, [device()])
    assert found.part(0, [1]).bytes_read == MB
    assert found.part(0, [0]) + found.part(0, [1]) == found.part(0)
    assert found.part(0, []).duration.seconds == 0.0
    assert found.row_s(0, 0) == pytest.approx(2.0)


def test_what_was_just_made_is_in_cache_and_weights_that_do_not_fit_are_not():
    text = "%0 = aten.mm.default($0, $1)\n%1 = aten.mm.default(%0, $2)\n"
    graph = chain(text, [f4(1, 512)] * 2, [f4(1, 512), f4(512, 512), f4(512, 512)])
    works = graph_work(graph)
    weight = 512 * 512 * 4
    assert cold_nbytes(graph, works, 0) == tuple(work.bytes_read + work.bytes_written for work in works)
    assert cold_nbytes(graph, works, 1 << 30) == (0, 0)  # the loop fits: all is there from the last run
    first, second = cold_nbytes(graph, works, weight + 8192)
    assert first == 2048 + weight
    assert second == weight  # what row 0 made is there, the weight is not


def test_errors_of_one_source_add_up_and_of_different_ones_as_squares():
    same = [Duration(1.0, {"products": 0.1})] * 4
    assert total(same).sigma_s == pytest.approx(0.4)
    other = [Duration(1.0, {name: 0.1}) for name in "abcd"]
    assert total(other).sigma_s == pytest.approx(0.2)
    assert (Estimate(1, 2, 3, 4, same[0]) + Estimate(1, 2, 3, 4, other[0])).duration.sigma_s == pytest.approx(
        sqrt(0.02)
    )
    assert difference(Duration(3.0, {"a": 0.3}), Duration(2.0, {"a": 0.2})).sigma_s == pytest.approx(0.1)
    assert str(Duration(0.0123, {"a": 0.001})) == "12.3 ± 1 ms"


def test_the_error_of_a_part_is_its_kinds():
    graph = chain(TWO, [f4(MB // 4)] * 2, [f4(MB // 4)])
    duration = costs(graph, [device(call_s=0.5)]).part(0).duration
    assert duration.errors == pytest.approx({"d: move": 4.0 * 0.2, "d: calls": 1.0 * 0.5})


LINK = Link(bytes_per_s=float(MB), latency_s=0.5, message_s=0.25, sigma=0.3)


def pool(n: int) -> Pool:
    pairs = {(a, b): LINK for a in range(n) for b in range(n) if a != b}
    return Pool(tuple(device(f"d{number}") for number in range(n)), pairs, (LINK,) * n)


def piece(executor: int, seconds: float, *needs: Need, replies: int | None = None) -> Piece:
    return Piece(executor, Duration(seconds, {f"d{executor}": seconds / 10}), needs, replies)


def test_independent_parts_overlap_and_dependent_ones_wait_for_the_transfer():
    apart = schedule([piece(0, 2.0), piece(1, 3.0)], pool(2))
    assert (apart.starts_s, apart.duration.seconds) == ((0.0, 0.0), 3.0)
    joined = schedule([piece(0, 2.0), piece(1, 3.0, Need(0, MB, piece=0))], pool(2))
    assert joined.starts_s == (0.0, pytest.approx(2.0 + 0.5 + 0.25 + 1.0))
    assert joined.duration.seconds == pytest.approx(6.75)
    assert joined.duration.errors == pytest.approx({"d0": 0.2, "d1": 0.3, "link 0 to 1": 1.75 * 0.3})
    assert joined.wire_nbytes == MB


def test_one_executor_runs_its_parts_one_after_the_other_without_transfers():
    found = schedule([piece(0, 2.0), piece(0, 3.0, Need(0, MB, piece=0))], pool(1))
    assert found.duration.seconds == pytest.approx(5.0)
    assert not found.transfers


def test_values_for_one_part_travel_together_and_a_link_carries_one_transfer_at_a_time():
    together = schedule([piece(1, 1.0, Need(0, MB), Need(0, MB))], pool(2))
    assert [sent.nbytes for sent in together.transfers] == [2 * MB]
    after = schedule([piece(1, 0.0, Need(0, MB)), piece(1, 0.0, Need(0, MB))], pool(2))
    assert [sent.start_s for sent in after.transfers] == pytest.approx([0.0, 1.25])  # the latency overlaps


def test_a_reply_ends_a_program_when_the_client_has_it():
    found = schedule([piece(0, 2.0, replies=MB)], pool(1))
    assert found.duration.seconds == pytest.approx(2.0 + 1.75)


def test_executors_without_a_link_of_their_own_are_joined_through_the_clients():
    lonely = Pool((device("a"), device("b")), {}, (LINK, msgspec.structs.replace(LINK, bytes_per_s=1.0)))
    assert lonely.link(0, 1).bytes_per_s == 1.0
    assert lonely.link(0, 1).sigma >= 0.5
    with pytest.raises(KeyError, match="no link between executors 0 and 1"):
        Pool((device("a"), device("b"))).link(0, 1)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 10.0), st.integers(0, 4)), min_size=1, max_size=8)
)
def test_a_schedule_is_between_its_busiest_executor_and_doing_everything_in_turn(drawn):
    pieces = []
    for number, (executor, seconds, back) in enumerate(drawn):
        needs = []
        if 0 < back <= number:
            needs = [Need(pieces[number - back].executor, 1000, number - back)]
        pieces.append(piece(executor, seconds, *needs))
    found = schedule(pieces, pool(3))
    busiest = max(sum(p.duration.seconds for p in pieces if p.executor == e) for e in range(3))
    in_turn = sum(p.duration.seconds for p in pieces) + sum(LINK.seconds(t.nbytes) for t in found.transfers)
    assert busiest - 1e-9 <= found.duration.seconds <= in_turn + 1e-9
    for number, one in enumerate(pieces):
        assert found.ends_s[number] == pytest.approx(found.starts_s[number] + one.duration.seconds)
        for need in one.needs:
            assert found.starts_s[number] >= found.ends_s[need.piece] - 1e-9
