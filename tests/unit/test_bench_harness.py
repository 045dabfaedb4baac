"""The harness of the experiments: order, spread, bars, physics, report."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import pytest

from remora.bench import experiments
from remora.bench.harness import Bar, Impossible, Options, Report, check_physics, interleave


def test_every_arm_runs_as_often_and_the_order_changes() -> None:
    order: list[str] = []
    arms = {name: lambda name=name: order.append(name) or name for name in "abc"}
    results = interleave(arms, 20, random.Random(0))
    assert {name: len(got) for name, got in results.items()} == {"a": 20, "b": 20, "c": 20}
    assert results["b"] == ["b"] * 20
    rounds = {tuple(order[at : at + 3]) for at in range(0, 60, 3)}
    assert all(sorted(arms) == sorted(names) for names in rounds)
    assert len(rounds) > 1


def test_the_order_follows_the_seed() -> None:
    def order_with(seed: int) -> list[str]:
        order: list[str] = []
        interleave({name: lambda name=name: order.append(name) for name in "ab"}, 16, random.Random(seed))
        return order

    assert order_with(1) == order_with(1)
    assert order_with(1) != order_with(2)


def test_a_row_has_median_and_spread() -> None:
    report = Report("x")
    assert report.row("time", "local", "ms", [5.0, 1.0, 3.0]) == 3.0
    row = report.rows[0]
    assert (row.low, row.median, row.high, row.trials) == (1.0, 3.0, 5.0, 3)


@pytest.mark.parametrize(
    ("value", "op", "bar", "ok"),
    [
        (3.0, "<=", 3.0, True),
        (3.1, "<=", 3.0, False),
        (0.6, ">=", 0.6, True),
        (1, "==", 0, False),
        (1, "<", 1, False),
    ],
)
def test_bars(value: float, op: str, bar: float, ok: bool) -> None:
    assert Bar("b", value, op, bar).ok is ok


def test_a_number_that_is_none_misses_every_bar() -> None:
    assert not any(Bar("b", float("nan"), op, 1.0).ok for op in ("<=", ">=", "==", "<"))


def test_nothing_is_faster_than_its_link() -> None:
    check_physics("upload", 1e9, 1.0, 1e9)
    with pytest.raises(Impossible, match=r"upload: .* 2\.00 GB/s, but the link carries 1\.00 GB/s"):
        check_physics("upload", 1e9, 0.5, 1e9)
    with pytest.raises(Impossible):
        check_physics("upload", 1, 0.0, 1e9)


def test_the_report_fails_with_one_bar(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("decode")
    report.bar("good", 1, "<=", 2)
    assert report.ok
    report.bar("bad", 3, "<=", 2)
    assert not report.ok
    content = report.content()
    assert content["bars"][1] == {"name": "bad", "value": 3, "op": "<=", "bar": 2, "ok": False}
    assert {"python", "torch", "transformers", "remora", "commit"} <= set(content["versions"])
    said = capsys.readouterr()
    assert said.out == ""
    assert "MISSED bad: 3 <= 2" in said.err


def test_an_impossible_measurement_ends_the_run_with_a_missed_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(options: Options, report: Report) -> None:
        report.bar("before", 1, "==", 1)
        raise Impossible("upload: too fast")

    monkeypatch.setitem(sys.modules, "remora.bench.fake", SimpleNamespace(run=run))
    monkeypatch.setitem(experiments.EXPERIMENTS, "fake", "remora.bench.fake")
    report = experiments.run("fake", Options())
    assert [bar.ok for bar in report.bars] == [True, False]
    assert "upload: too fast" in report.bars[1].name
