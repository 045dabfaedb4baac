"""The table of ops that fail, and what counts as equal."""

from __future__ import annotations

import pytest
import torch

from remora.bench import compat_table
from remora.bench.compat import Result
from remora.bench.compat_compare import _Differs, _equal_bits, _same_strides


def test_the_table_names_each_op_that_fails_with_its_reason(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{compat_table.BEGIN}\nold\n{compat_table.END}\nafter\n")
    failures = [{"kind": "values", "case": "float32 sample 0", "reason": "1 | 2"}]
    compat_table.write(page, [Result("add", 9), Result("sub", 9, failures)])
    assert page.read_text() == (
        f"before\n{compat_table.BEGIN}\n"
        "1 of 2 ops (50.0%) are equal to the CPU in every call that was compared.\n\n"
        "| op | what | cases | reason |\n|---|---|---|---|\n"
        "| `sub` | values | 1 of 9 | float32 sample 0: 1 \\| 2 |\n"
        f"{compat_table.END}\nafter\n"
    )


def test_a_page_without_markers_is_not_written(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(ValueError, match="has no lines"):
        compat_table.write(page, [Result("add", 1)])
    assert page.read_text() == "text"


@pytest.mark.parametrize(
    ("here", "there"), [([0.0], [-0.0]), ([float("nan")], [1.0]), ([1.0], [1.0000001]), ([1 + 2j], [1 - 2j])]
)
def test_equal_means_equal_bits(here, there):
    _equal_bits(torch.tensor(here), torch.tensor(here), "values", "output")
    with pytest.raises(_Differs):
        _equal_bits(torch.tensor(here), torch.tensor(there), "values", "output")


def test_strides_of_single_elements_say_nothing():
    assert _same_strides(torch.empty(1, 3), torch.empty(3, 1).t())
    assert not _same_strides(torch.empty(2, 3), torch.empty(3, 2).t())
