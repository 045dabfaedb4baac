"""`remora bench`: what it prints, and its exit code."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from remora.bench import experiments
from remora.bench.harness import Options, Report
from remora.cli.main import app


def ending_with(value: float, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Options]]:
    """Experiments that measure nothing, and miss their bar if `value` is over 1."""
    asked: list[tuple[str, Options]] = []

    def run(name: str, options: Options) -> Report:
        asked.append((name, options))
        report = Report(name)
        report.row("time", "local", "ms", [1.0, 2.0, 3.0])
        report.bar("speed", value, "<=", 1)
        return report

    monkeypatch.setattr(experiments, "run", run)
    return asked


def test_the_last_line_is_json_and_bars_that_hold_exit_0(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ending_with(0.5, monkeypatch)
    result = CliRunner().invoke(app, ["bench", "decode", "--quick", "--seed", "4"])
    assert result.exit_code == 0
    assert asked == [("decode", Options(quick=True, url=None, seed=4))]
    *table, last = result.stdout.strip().splitlines()
    assert any("speed" in line for line in table)
    assert json.loads(last)["experiment"] == "decode"


def test_with_json_there_is_one_line_and_a_missed_bar_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    ending_with(2, monkeypatch)
    result = CliRunner().invoke(app, ["bench", "decode", "--json"])
    assert result.exit_code == 1
    (line,) = result.stdout.strip().splitlines()
    assert json.loads(line)["bars"] == [{"name": "speed", "value": 2, "op": "<=", "bar": 1, "ok": False}]


def test_an_unknown_experiment_is_refused_with_the_list() -> None:
    result = CliRunner().invoke(app, ["bench", "speed-of-light"])
    assert result.exit_code == 2
    assert "there is: decode" in result.stderr


@pytest.mark.parametrize(
    ("text", "rtts"), [("0,10,50", (0.0, 10.0, 50.0)), ("50,0,50", (0.0, 50.0)), ("2.5", (2.5,))]
)
def test_round_trips_are_a_list_of_milliseconds(
    text: str, rtts: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ending_with(0.5, monkeypatch)
    assert CliRunner().invoke(app, ["bench", "decode", "--rtt", text]).exit_code == 0
    assert asked == [("decode", Options(rtts=rtts))]


@pytest.mark.parametrize("text", ["", "ten", "0,,5", "-1", "0,1e9", "nan"])
def test_other_round_trips_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ending_with(0.5, monkeypatch)
    result = CliRunner().invoke(app, ["bench", "decode", "--rtt", text])
    assert result.exit_code == 2
    assert f"--rtt {text!r} is no list of milliseconds" in result.stderr.replace("\n", " ")
    assert asked == []


def test_round_trips_are_of_decode_alone() -> None:
    result = CliRunner().invoke(app, ["bench", "train", "--rtt", "0"])
    assert result.exit_code == 2
    assert "--rtt is of decode" in result.stderr
