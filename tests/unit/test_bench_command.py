"""`remora bench`: what it prints, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from remora.bench import experiments, records
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
    assert "there is: seed, " in result.stderr
    assert ", all" in result.stderr


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


def test_raw_results_go_to_a_file_that_grows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ending_with(2, monkeypatch)
    for _ in range(2):
        CliRunner().invoke(app, ["bench", "train", "--json", "--out", str(tmp_path / "x.jsonl")])
    found = list(records.read(tmp_path / "x.jsonl"))
    runs = records.of_kind(found, records.Run)
    assert len({run.run for run in runs}) == 2
    assert {run.experiment for run in runs} == {"train"}
    assert all(run.commit and run.versions["torch"] for run in runs)
    assert [(bar.value, bar.ok) for bar in records.of_kind(found, records.Bar)] == [(2, False)] * 2
    assert [row.median for row in records.of_kind(found, records.Row)] == [2.0, 2.0]


@pytest.mark.parametrize(("option", "value"), [("--rate", "1"), ("--executors", "http://a,http://b")])
def test_links_are_of_seed_alone(option: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ending_with(0.5, monkeypatch)
    assert CliRunner().invoke(app, ["bench", "train", option, value]).exit_code == 2
    assert CliRunner().invoke(app, ["bench", "seed", option, value]).exit_code == 0
    assert asked in (
        [("seed", Options(rates=(1.0,)))],
        [("seed", Options(executors=("http://a", "http://b")))],
    )


def test_all_runs_what_measures_in_processes_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        ran.append(command)
        return SimpleNamespace(returncode=int(command[4] == "train"))

    monkeypatch.setattr(experiments.subprocess, "run", run)
    result = CliRunner().invoke(app, ["bench", "all", "--quick", "--out", "x.jsonl"])
    assert result.exit_code == 1
    assert {command[4] for command in ran} == set(experiments.EXPERIMENTS) - set(experiments.NO_MEASUREMENTS)
    assert all("--quick" in command and command[-2:] == ["--out", "x.jsonl"] for command in ran)
    found = json.loads(result.stdout.strip().splitlines()[-1])["all"]
    assert [name for name, one in found.items() if not one["ok"]] == ["train"]
