"""Does it fit: bytes of what rows read, make and keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.text import parse_template
from remora.plan.memory import Need, footprint, need, shortfall

KB = 1024
ONE = Facts("float32", (256,), 4)


def graph(text: str, shares=None, slots=None, **more) -> Graph:
    template = parse_template(text)
    shares = shares or [None] * len(template.nodes)
    rows = tuple(
        Row(node, (ONE,), (shared,), (0,) if node.op.endswith("_.Tensor") else ())
        for node, shared in zip(template.nodes, shares, strict=True)
    )
    return Graph(rows, slots or tuple(Outside(ONE, n) for n in range(template.n_slots)), (), **more)


CHAIN = """%0 = aten.neg.default($0)
%1 = aten.neg.default(%0)
%2 = aten.neg.default(%1)
"""


def test_values_go_after_their_last_reader():
    found = footprint(graph(CHAIN))
    assert (found.read_nbytes, found.made_nbytes, found.kept_nbytes) == (KB, 2 * KB, 0)
    assert found.peak_nbytes == 3 * KB


def test_what_is_kept_stays():
    found = footprint(graph(CHAIN, keep=frozenset({(0, 0), (2, 0)})))
    assert (found.made_nbytes, found.kept_nbytes) == (3 * KB, 2 * KB)
    assert footprint(graph(CHAIN), exports=[(0, 0)]).kept_nbytes == KB


def test_a_view_holds_the_memory_and_takes_none():
    text = """%0 = aten.neg.default($0)
%1 = aten.detach.default(%0)
%2 = aten.neg.default($0)
%3 = aten.add.Tensor(%1, %2)
"""
    found = footprint(graph(text, [None, 0, None, None]))
    assert found.made_nbytes == 3 * KB  # rows 0, 2 and 3
    in_place = graph("%0 = aten.neg.default($0)\n%1 = aten.add_.Tensor(%0, $0)\n", [None, 0])
    assert footprint(in_place).made_nbytes == KB


def test_a_part_reads_what_other_parts_made():
    found = footprint(graph(CHAIN), rows=[2])
    assert (found.read_nbytes, found.made_nbytes) == (KB, KB)
    assert footprint(graph(CHAIN), rows=[]).peak_nbytes == 0


def test_slots_of_one_memory_count_once():
    slots = (Outside(ONE, 7), Outside(Facts("float32", (128,), 4), 7), Outside(ONE, 8))
    text = "%0 = aten.addcmul.default($0, $1, $2)\n"
    assert footprint(graph(text, slots=slots)).read_nbytes == 2 * KB


def test_an_executor_needs_what_it_holds_what_it_lacks_and_what_rows_make():
    chain = graph(CHAIN, keep=frozenset({(2, 0)}))
    assert need(chain, [0, 1, 2], [False], 10 * KB) == Need(12 * KB, 13 * KB, KB)
    assert need(chain, [0, 1, 2], [True], 10 * KB) == Need(11 * KB, 12 * KB)
    assert need(chain, [], [False], 10 * KB) == Need(10 * KB, 10 * KB)


def test_a_shortfall_says_its_arithmetic():
    assert shortfall([Need(10, 99), Need(20, 99)], [10, 30]) == ""
    assert shortfall([Need(5000, 5000), Need(1, 1)], [2000, 1]) == (
        "executor 0 needs 5,000 bytes and grants 2,000: 3,000 missing"
    )
    with pytest.raises(ValueError):
        shortfall([Need(1, 1)], [])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.sets(st.integers(0, 11)))
def test_a_peak_is_between_the_largest_row_and_everything(reads, keep):
    lines = []
    for number, back in enumerate(reads):
        source = f"%{number - 1 - back}" if back < number else "$0"
        lines.append(f"%{number} = aten.add.Tensor({source}, $0)\n")
    kept = frozenset((row, 0) for row in keep if row < len(reads))
    found = footprint(graph("".join(lines), keep=kept))
    assert KB <= found.made_nbytes <= len(reads) * KB
    assert found.kept_nbytes == len(kept) * KB <= found.made_nbytes
