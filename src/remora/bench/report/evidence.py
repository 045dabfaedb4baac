"""All records of some files, looked up by run. Reads; judges nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remora.bench import records
from remora.bench.records import MEASURED, Bar, Record, Row, Run, Sample, Unreadable

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Evidence:
    """runs: by name, in the order of the files. The others in that order too."""

    runs: dict[str, Run] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    rows: tuple[Row, ...] = ()
    bars: tuple[Bar, ...] = ()

    def standing(self) -> list[Sample]:
        """The samples that pictures are made of: of each question the newest answer, a full run before a quick one.

        What gave other outputs than local PyTorch answers nothing.
        """
        found: dict[object, Sample] = {}
        for sample in sorted(self.samples, key=lambda sample: self._weight(sample.run)):
            if sample.identical is not False and sample.seconds:
                found[question(sample)] = sample
        return list(found.values())

    def standing_bars(self) -> list[Bar]:
        """The newest of each bar, as above."""
        ordered = sorted(self.bars, key=lambda bar: self._weight(bar.run))
        return list({(bar.experiment, bar.name): bar for bar in ordered}.values())

    def standing_rows(self) -> list[Row]:
        """The newest of each measure of an arm, as above."""
        ordered = sorted(self.rows, key=lambda row: self._weight(row.run))
        return list({(row.experiment, row.measure, row.arm): row for row in ordered}.values())

    def experiments(self) -> set[str]:
        return {run.experiment for run in self.runs.values()}

    def _weight(self, run: str) -> tuple[bool, str]:
        return not self.runs[run].quick, self.runs[run].started


def question(sample: Sample) -> tuple[object, ...]:
    """What was asked: samples with equal questions answer the same."""
    return (*place(sample), sample.how)


def place(sample: Sample) -> tuple[object, ...]:
    """The question but for whether it was measured or simulated: a measured sample and its simulated twin agree."""
    link = sample.link
    return (
        sample.experiment,
        sample.workload,
        sample.arm,
        link.gbit_per_s,
        link.rtt_ms or 0.0,
        sample.executors,
        tuple(sorted(sample.shape.items())),
        sample.transport,
        sample.device,
    )


def preferred(samples: Iterable[Sample]) -> list[Sample]:
    """Of a measured sample and its simulated twin the measured one."""
    found: dict[object, Sample] = {}
    for sample in samples:
        if place(sample) not in found or sample.how == MEASURED:
            found[place(sample)] = sample
    return list(found.values())


def read(paths: Sequence[Path]) -> Evidence:
    """All of them together.

    Raises:
        Unreadable: a line is no record, or of a run that is not there; says which file and line.
        OSError: no such file.
    """
    gathering = _Gathering()
    for path in paths:
        if path.suffix == ".json":
            for record in _older(path):
                gathering.add(record, str(path))
        else:
            for number, record in records.numbered(path):
                gathering.add(record, f"{path}:{number}")
    return gathering.evidence()


def gathered(found: Iterable[Record]) -> Evidence:
    """These records, as if they had been read."""
    gathering = _Gathering()
    for record in found:
        gathering.add(record, "records")
    return gathering.evidence()


class _Gathering:
    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.samples: list[Sample] = []
        self.rows: list[Row] = []
        self.bars: list[Bar] = []

    def add(self, record: Record, source: str) -> None:
        """Raises Unreadable if it is of a run that nobody has described, or a number in it cannot be."""
        if isinstance(record, Run):
            if self.runs.setdefault(record.run, record) != record:
                raise Unreadable(f"{source}: run {record.run} is described twice, and not alike")
            return
        if record.run not in self.runs:
            kind = type(record).__name__.lower()
            raise Unreadable(f"{source}: a {kind} of run {record.run}, which no line before describes")
        if isinstance(record, Sample):
            _check(record, source)
            self.samples.append(record)
        elif isinstance(record, Row):
            self.rows.append(record)
        else:
            self.bars.append(record)

    def evidence(self) -> Evidence:
        return Evidence(self.runs, tuple(self.samples), tuple(self.rows), tuple(self.bars))


def _check(sample: Sample, source: str) -> None:
    what = f"{source}: {sample.workload}, {sample.arm}"
    if sample.units < 1 or any(not seconds > 0 for seconds in sample.seconds):
        raise Unreadable(f"{what}: a trial has at least one unit and takes time")
    for name, nbytes in sample.nbytes.items():
        if len(nbytes) != len(sample.seconds):
            raise Unreadable(f"{what}: {len(nbytes)} counts of bytes {name} for {len(sample.seconds)} trials")


def _older(path: Path) -> list[Record]:
    """A file with one JSON object, as `remora bench NAME --json` prints it: rows and bars.

    It says neither its command nor, but in its name, its date: both stay open where they are not known.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise Unreadable(f"{path}: {error}") from None
    if not isinstance(content, dict) or not {"experiment", "rows", "bars", "versions"} <= content.keys():
        raise Unreadable(f"{path}: neither records nor what `remora bench NAME --json` prints")
    return list(_as_records(content, path))


def _as_records(content: dict[str, Any], path: Path) -> Iterable[Record]:
    date = _DATE.match(path.name)
    versions = {name: text for name, text in content["versions"].items() if name != "commit"}
    both: dict[str, Any] = {"run": path.name, "experiment": content["experiment"]}
    yield Run(
        **both,
        command="",
        commit=content["versions"].get("commit", ""),
        started=date.group() if date else "",
        versions=versions,
        quick="quick" in path.name,
    )
    try:
        for row in content["rows"]:
            yield Row(**both, **{"low95": None, "high95": None, **row})
        for bar in content["bars"]:
            yield Bar(**both, **bar)
    except TypeError as error:
        raise Unreadable(f"{path}: {error}") from None
