"""Records of measurements: what is written is what is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remora.bench import records
from remora.bench.records import CLIENT, Bar, Link, Row, Run, Sample

RUN = Run(
    run="r1",
    experiment="seed",
    command="remora bench seed",
    commit="abc",
    started="2026-01-01T00:00:00Z",
    versions={"torch": "2.13.0"},
    seed=3,
)
SAMPLE = Sample(
    run="r1",
    experiment="seed",
    workload="seed",
    arm="blind",
    link=Link(by="netns", gbit_per_s=0.56, carried_gbit_per_s=0.53),
    executors=2,
    unit="step",
    units=10,
    shape={"cache_tokens": 128},
    seconds=[0.064, 0.066],
    cpu_s=[0.01, 0.01],
    nbytes={records.way(0, 1): [393_216, 393_216], records.way(CLIENT, 0): [50, 51]},
    predicted_s=0.062,
    identical=True,
)
ROW = Row(
    run="r1",
    experiment="seed",
    measure="m",
    arm="a",
    unit="ms",
    median=1.0,
    low=0.5,
    high=2.0,
    trials=3,
    low95=0.5,
    high95=None,
)
BAR = Bar(run="r1", experiment="seed", name="b", value=None, op="<=", bar=1.0, ok=False)


def test_what_is_written_is_read_and_files_grow(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    records.write(path, [RUN, SAMPLE])
    records.write(path, [ROW, BAR])
    found = list(records.read(path))
    assert found == [RUN, SAMPLE, ROW, BAR]
    assert records.of_kind(found, Sample) == [SAMPLE]


def test_a_line_is_json_with_its_kind(tmp_path: Path) -> None:
    records.write(tmp_path / "x", [SAMPLE])
    line = json.loads((tmp_path / "x").read_text())
    assert line["kind"] == "sample"
    assert line["nbytes"] == {"0>1": [393_216, 393_216], "client>0": [50, 51]}
    assert line["link"] == {"by": "netns", "gbit_per_s": 0.56, "carried_gbit_per_s": 0.53}
    assert "bound" not in line


@pytest.mark.parametrize(
    ("line", "says"), [('{"kind": "tale"}', "tale"), ('{"kind": "run"}', "missing"), ("{", "x:2")]
)
def test_what_is_no_record_is_refused_with_its_place(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "x"
    records.write(path, [BAR])
    path.write_text(path.read_text() + line)
    with pytest.raises(records.Unreadable, match="x:2") as refused:
        list(records.read(path))
    assert says in str(refused.value)


def test_a_field_that_nobody_knows_yet_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x"
    records.write(path, [BAR])
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}) + "\n\n")
    assert list(records.read(path)) == [BAR]
