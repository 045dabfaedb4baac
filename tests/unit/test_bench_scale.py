"""Points and growth of `scale`; what `all` leaves out."""

from __future__ import annotations

import pytest

from remora.bench import experiments
from remora.bench.harness import Report
from remora.bench.scale import AXES, BASE, QUICK_AXES, Cost, grown, judge


def test_a_cost_that_grows_as_local_does_does_not_grow() -> None:
    assert grown(Cost(1, 2, 1, 50), Cost(4, 8, 1, 50)) == 1.0
    assert grown(Cost(1, 2, 1, 50), Cost(4, 24, 1, 50)) == 3.0


def test_growth_is_judged_from_the_smallest_to_the_largest_of_the_models_sizes_alone() -> None:
    report = Report("scale")
    costs = {16: Cost(4, 24, 1, 50), 2: Cost(1, 2, 1, 50), 4: Cost(1, 90, 1, 50)}
    judge(report, "layers", costs)
    judge(report, "clients", costs)
    assert [(bar.value, bar.ok) for bar in report.bars] == [(3.0, False)]


@pytest.mark.parametrize("axes", [AXES, QUICK_AXES])
def test_every_axis_begins_at_a_point_that_has_it(axes: dict[str, tuple[int, ...]]) -> None:
    for axis, sizes in axes.items():
        assert hasattr(BASE, axis)
        assert list(sizes) == sorted(sizes)
        assert len(sizes) > 1


def test_all_leaves_out_experiments_that_exist() -> None:
    assert set(experiments.NO_MEASUREMENTS) < set(experiments.EXPERIMENTS)
