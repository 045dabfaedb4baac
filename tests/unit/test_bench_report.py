"""The report of measurements: what its pictures and tables are made of, and the page around them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

import measured
from remora.bench import records
from remora.bench.records import MEASURED, SIMULATED, Bar, Link, Record, Row, Sample, Unreadable
from remora.bench.report import draw, growth, series
from remora.bench.report.evidence import gathered, read
from remora.bench.report.figures import Bars, Heat, Lines, Missing, Scatter, Verdicts
from remora.bench.report.page import FIGURES, page
from remora.bench.report.tables import missing, reached, sections
from remora.cli.main import app

GOLDEN = Path(__file__).parents[1] / "golden" / "report.html"
ALL = gathered(measured.everything())
NOTHING = gathered([])


def sample(**changes: object) -> Sample:
    one = Sample(
        run="r",
        experiment="seed",
        workload="seed",
        arm="blind",
        link=Link(by="netns", gbit_per_s=1.0),
        executors=2,
        unit="step",
        units=10,
        shape={"cache_tokens": 128},
        seconds=[0.01] * 7,
    )
    return msgspec.structs.replace(one, **changes)


def seed_run(*samples: Sample) -> list[Record]:
    return [measured.run("r", "seed"), *samples]


# Series


def test_latency_is_the_smallest_cache_in_ms_a_step_by_rate() -> None:
    found = series.latency(ALL)
    assert isinstance(found, Bars)
    assert found.groups == ("0.56 Gbit/s", "1 Gbit/s", "10 Gbit/s", "25 Gbit/s", "100 Gbit/s")
    assert found.arms == ("blind", "aware", "resident")
    blind = found.values["0.56 Gbit/s", "blind"]
    assert blind.median == pytest.approx(6.38, rel=0.01)
    assert blind.low < blind.median < blind.high
    assert not blind.simulated
    assert found.values["10 Gbit/s", "blind"].simulated
    assert found.head.runs == ("s1",)


def test_other_arms_and_transports_and_a_twin_over_less_are_no_part_of_the_published_figure() -> None:
    others = [sample(arm="split"), sample(arm="local", transport="", executors=0), sample(transport="post")]
    twin = sample(workload="seed, twin", shape={"cache_tokens": 16}, nbytes={"0>1": [1] * 7})
    found = series.latency(gathered(seed_run(sample(), *others, twin)))
    assert isinstance(found, Bars)
    assert found.arms == ("blind",)
    assert "128 tokens" in found.head.caption
    assert isinstance(series.wire_bytes(gathered(seed_run(twin))), Missing)


def test_bytes_are_of_a_step_and_all_ways_together() -> None:
    both = sample(nbytes={"0>1": [1000] * 7, "client>0": [200] * 7})
    found = series.wire_bytes(gathered(seed_run(both)))
    assert isinstance(found, Bars)
    assert found.values["seed, per step", "blind"].median == 120


def test_what_was_not_counted_has_no_bytes() -> None:
    assert isinstance(series.wire_bytes(gathered(seed_run(sample()))), Missing)


def test_tokens_a_second_need_two_round_trips() -> None:
    found = series.round_trips(ALL)
    assert isinstance(found, Lines)
    assert [panel.title for panel in found.panels] == ["GPT-2", "12 thin layers", "GPT-2 generate"]
    line = next(line for line in found.panels[0].lines if line.name == "handle")
    assert [x for x, _ in line.points] == [0, 10, 50]
    assert line.points[0][1].median == pytest.approx(1000 / (50 * 1.01))
    one = [measured.run("modes-run", "modes"), *measured.tokens("modes", {"local": 5.0}, (10.0,), "GPT-2")]
    assert isinstance(series.round_trips(gathered(one)), Missing)


def test_gain_is_the_share_of_blinds_time_and_says_what_is_simulated() -> None:
    found = series.gains(ALL)
    assert isinstance(found, Heat)
    assert found.ys == ("128", "1k", "8k", "64k")
    aware = found.grids[0]
    assert aware.title == "aware against blind"
    assert aware.values["0.56 Gbit/s", "128"].median == pytest.approx(0.88, abs=0.01)
    assert not aware.values["0.56 Gbit/s", "128"].simulated
    assert aware.values["100 Gbit/s", "128"].simulated


def test_a_gain_is_by_trials_that_took_turns() -> None:
    """Both arms slow down together: the share does not move."""
    drift = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    blind = sample(seconds=drift)
    aware = sample(arm="aware", seconds=[0.25 * s for s in drift])
    more = [sample(shape={"cache_tokens": 256}), sample(arm="aware", shape={"cache_tokens": 256})]
    found = series.gains(gathered(seed_run(blind, aware, *more)))
    assert isinstance(found, Heat)
    share = found.grids[0].values["1 Gbit/s", "128"]
    assert (share.low, share.median, share.high) == (0.75, 0.75, 0.75)


def test_predictions_pair_with_what_the_model_said_and_with_simulated_twins() -> None:
    real = sample(seconds=[0.010] * 7, predicted_s=0.011)
    twin = sample(how=SIMULATED, seconds=[0.008], link=Link(by="model", gbit_per_s=1.0))
    found = growth.predictions(gathered(seed_run(real, twin)))
    assert isinstance(found, Scatter)
    pairs = {name: [(shown.median, predicted) for shown, predicted in cloud] for name, cloud in found.clouds}
    assert pairs == {
        "cost model, seed": [(pytest.approx(1.0), pytest.approx(1.1))],
        "simulator, seed": [(pytest.approx(1.0), pytest.approx(0.8))],
    }
    assert "1 point, median error 20.0%, worst 20%." in found.head.caption


def test_rows_that_were_measured_and_simulated_are_pairs_too() -> None:
    def row(arm: str, median: float, unit: str = "ms", measure: str = "decode, RTT 0") -> Row:
        both = {"run": "r", "experiment": "sim", "measure": measure, "unit": unit, "trials": 3}
        return Row(**both, arm=arm, median=median, low=1.0, high=3.0, low95=1.0, high95=3.0)

    lone = row("measured", 9.0, measure="not simulated")
    evidence = gathered(
        [measured.run("r", "sim"), row("simulated", 2.2), row("measured", 2.0), lone, row("local", 1.0)]
    )
    found = growth.predictions(evidence)
    assert isinstance(found, Scatter)
    ((name, pairs),) = found.clouds
    assert (name, [(shown.median, predicted) for shown, predicted in pairs]) == ("simulator", [(2.0, 2.2)])
    assert found.head.runs == ("r",)


def test_growth_varies_one_quantity_and_keeps_the_others() -> None:
    found = growth.growth(ALL)
    assert isinstance(found, Lines)
    quantities = ["layers", "width", "context", "batch", "clients", "executors"]
    assert [panel.x_label for panel in found.panels] == quantities
    assert [[x for x, _ in line.points] for line in found.panels[-1].lines] == [[1, 2], [1, 2]]
    layers = found.panels[0]
    assert layers.log_x
    assert [x for x, _ in layers.lines[0].points] == [2, 6, 12, 24, 48]


def test_peers_are_ratios_to_local_of_the_same_run() -> None:
    found = growth.peers(ALL)
    assert isinstance(found, Bars)
    assert found.groups == ("GPT-2 generate, RTT 0 ms", "GPT-2 generate, RTT 50 ms")
    assert found.values["GPT-2 generate, RTT 0 ms", "SkyTorch"].median == pytest.approx(55 / 40)


def test_bars_are_shown_by_how_far_they_are_from_missed() -> None:
    found = growth.verdicts(ALL)
    assert isinstance(found, Verdicts)
    margins = {verdict.name: verdict.margin for verdict in found.verdicts}
    assert margins == {
        "<b>not</b> measured": None,
        "resident, B": pytest.approx(1.15),
        "resident, ms": pytest.approx(0.825),
    }
    assert found.head.caption.startswith("2 of 4 bars are met; 1 of them")


def test_more_is_better_turns_the_margin_round() -> None:
    bar = Bar(run="r", experiment="seed", name="faster", value=2.0, op=">=", bar=10.0, ok=False)
    found = growth.verdicts(gathered([measured.run("r", "seed"), bar]))
    assert isinstance(found, Verdicts)
    assert found.verdicts[0].margin == 5.0


# Which records count


def test_the_newest_full_run_answers_and_a_quick_one_only_where_there_is_no_other() -> None:
    old = [measured.run("old", "seed", "2026-01-01"), sample(run="old", seconds=[1.0] * 7)]
    new = [measured.run("new", "seed", "2026-01-02"), sample(run="new", seconds=[2.0] * 7)]
    quick = [
        measured.run("quick", "seed", "2026-01-03", quick=True),
        sample(run="quick", seconds=[3.0] * 7),
        sample(run="quick", arm="aware"),
    ]
    standing = gathered([*new, *quick, *old]).standing()
    assert {(one.run, one.arm) for one in standing} == {("new", "blind"), ("quick", "aware")}


def test_what_differs_from_local_is_never_drawn() -> None:
    wrong = gathered(seed_run(sample(identical=False)))
    assert isinstance(series.latency(wrong), Missing)
    assert "Outputs differ from local in 1 samples" in page(wrong, [], draw.svg)


def test_nothing_measured_is_nothing_drawn() -> None:
    assert all(isinstance(make(NOTHING), Missing) for make in FIGURES)
    text = page(NOTHING, ["seed", "modes"], draw.svg)
    assert "No records of:</b> seed, modes" in text
    assert text.count("<b>Not measured.</b>") == len(FIGURES)
    assert "<svg" not in text


def test_experiments_without_records_are_named() -> None:
    assert missing(ALL, ["seed", "decode", "zoo"]) == ("decode", "zoo")


# Tables


def test_a_single_trial_and_a_missing_interval_are_marked() -> None:
    def row(trials: int, low95: float | None) -> Row:
        both = {"run": "r", "experiment": "seed", "measure": "m", "arm": "a", "unit": "ms"}
        return Row(**both, median=2.0, low=1.0, high=3.0, trials=trials, low95=low95, high95=2.5)

    run = measured.run("r", "seed")
    lone = sample(seconds=[0.01])
    (section,) = sections(gathered([run, lone, row(1, 1.0), row(7, None), row(7, 1.5), row(5, 1.5)]))
    samples, rows = section.tables
    assert samples.rows[0][5] == "one trial"
    assert [cells[4] for cells in rows.rows] == [
        "one trial",
        "no interval",
        "1.5 to 2.5",
        "1.5 to 2.5 (5 trials)",
    ]


def test_the_table_of_gains_says_from_which_cache_on() -> None:
    table = reached(ALL)
    assert table is not None
    assert ("aware against blind", "1 Gbit/s", "128", "1k") in table.rows
    assert ("aware against blind", "100 Gbit/s", "8k (simulated)", "64k (simulated)") in table.rows


# Reading


def written(path: Path, *found: Record) -> Path:
    records.write(path, found)
    return path


def test_wrong_records_are_refused_with_file_and_line(tmp_path: Path) -> None:
    run = measured.run("r", "seed")
    no_run = written(tmp_path / "a.jsonl", sample())
    with pytest.raises(Unreadable, match=r"a\.jsonl:1: a sample of run r"):
        read([no_run])
    uneven = written(tmp_path / "b.jsonl", run, sample(nbytes={"0>1": [1]}))
    with pytest.raises(Unreadable, match=r"b\.jsonl:2: seed, blind: 1 counts of bytes 0>1 for 7 trials"):
        read([uneven])
    timeless = written(tmp_path / "c.jsonl", run, sample(seconds=[0.0]))
    with pytest.raises(Unreadable, match=r"c\.jsonl:2: .*takes time"):
        read([timeless])


def test_what_an_experiment_printed_before_there_were_records_is_read(tmp_path: Path) -> None:
    path = tmp_path / "2026-01-02-cpu-train-quick.json"
    row = {"measure": "m", "arm": "a", "unit": "ms", "median": 1, "low": 1, "high": 1, "trials": 3}
    bar = {"name": "b", "value": None, "op": "<=", "bar": 1, "ok": False}
    content = {
        "experiment": "train",
        "rows": [row],
        "bars": [bar],
        "versions": {"torch": "2", "commit": "abc"},
    }
    path.write_text(json.dumps(content))
    evidence = read([path])
    (run,) = evidence.runs.values()
    assert (run.started, run.commit, run.quick, run.command) == ("2026-01-02", "abc", True, "")
    assert evidence.rows[0].low95 is None
    assert "train (command not recorded)" in page(evidence, [], draw.svg)
    path.write_text("[1, 2]")
    with pytest.raises(Unreadable, match="neither records nor"):
        read([path])


# Page and pictures


def test_the_page_loads_nothing_and_escapes_what_it_is_told() -> None:
    text = page(ALL, ["seed"], draw.svg)
    assert not re.search(r"https?:|<script|<link|<img|<iframe|@import|src=|url\((?!#)", text)
    assert "default-src 'none'" in text
    assert "<b>not</b>" not in text
    assert "&lt;b&gt;not&lt;/b&gt; measured" in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == text.count('role="img"') == len(FIGURES)
    assert "currentColor" in text
    assert draw.INK not in text
    assert '<g id="' not in text


def test_a_picture_is_the_same_each_time() -> None:
    figure = series.gains(ALL)
    assert isinstance(figure, Heat)
    assert draw.svg(figure) == draw.svg(figure)


def test_a_small_report_is_as_it_was() -> None:
    """Figures as values, since drawings depend on matplotlib's version. Written anew: delete the file, run, read."""
    small = [
        one for one in measured.seed() if not isinstance(one, Sample) or one.shape["cache_tokens"] < 2000
    ]
    kept = [one for one in small if not isinstance(one, Sample) or one.link.gbit_per_s in (1.0, 10.0)]
    text = page(gathered(kept), ["seed", "modes"], lambda figure: f"<pre>{figure.head.name}: {figure}</pre>")
    text = re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number.group()):.4g}", text)
    if not GOLDEN.exists():
        GOLDEN.write_text(text)
        pytest.fail(f"{GOLDEN} was not there and is written: read it")
    assert text == GOLDEN.read_text()


def test_the_command_writes_page_and_pictures(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", *measured.peers())
    html, png = tmp_path / "r.html", tmp_path / "png"
    result = CliRunner().invoke(app, ["bench", "report", str(path), "--html", str(html), "--png", str(png)])
    assert result.exit_code == 0, result.output
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert {file.name for file in png.iterdir()} == {"rtt.png", "peers.png", "bars.png"}
    assert (png / "peers.png").read_bytes().startswith(b"\x89PNG")
    assert "latency: not measured" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "--html", "x"], "report needs files"),
        (["report", "FILE"], "report needs --html"),
        (["report", "FILE", "--html", "x"], "FILE:2"),
        (["report", "absent.jsonl", "--html", "x"], "absent.jsonl"),
        (["decode", "FILE"], "are of report"),
    ],
)
def test_the_command_says_what_it_needs(arguments: list[str], says: str, tmp_path: Path) -> None:
    file = written(tmp_path / "FILE", measured.run("r", "seed"))
    file.write_text(file.read_text() + "{}\n")
    named = [str(file) if argument == "FILE" else argument for argument in arguments]
    result = CliRunner().invoke(app, ["bench", *named])
    assert result.exit_code == 2
    assert says in result.stderr.replace("\n", "")


def test_simulated_numbers_say_so() -> None:
    """Simulated numbers never pass for measured ones: in bars, lines, the map and the tables."""
    real, fake = sample(), sample(arm="aware", how=SIMULATED, seconds=[0.001])
    evidence = gathered(seed_run(real, fake))
    assert {one.how for one in evidence.samples} == {MEASURED, SIMULATED}
    (section,) = sections(evidence)
    assert [cells[5] for cells in section.tables[0].rows][1] == "simulated"
    assert section.tables[0].rows[1][2].startswith("simulated")
    found = series.latency(evidence)
    assert isinstance(found, Bars)
    assert found.values["1 Gbit/s", "aware"].simulated
