"""What a measurement leaves: JSON lines, one record a line, written by `remora bench NAME --out FILE.jsonl`.

A file holds any number of runs; every record names its own, so files may be joined. `kind` says which record it is:

- `run`: what ran, with which versions, at which commit, by which command. The first of its run.
- `sample`: all trials of one arm of one workload on one link: seconds and bytes as they were, nothing derived.
- `row`: one arm of one measure, reduced to a median and its interval.
- `bar`: a number that must hold.

A reader takes what it knows: an unknown field is left out, a missing one has its default, an unknown kind is an error.
A number that is none (not measured) is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

CLIENT = "client"
MEASURED, SIMULATED = "measured", "simulated"


class Link(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What lies between any two ends, the client among them.

    by: `netns`, `proxy`, `loopback`, `hosts` (other machines, their own network), `device` (one machine with an
    accelerator), `model` (simulated). gbit_per_s, rtt_ms: what was asked for, None for no limit, and what nobody chose.
    carried_gbit_per_s: what a raw socket reached there in the same run, best way.
    """

    by: str
    gbit_per_s: float | None = None
    rtt_ms: float | None = None
    carried_gbit_per_s: float | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="run"):
    """run: a random name, in every record of it. versions: of python, torch, …, and `machine`."""

    run: str
    experiment: str
    command: str
    commit: str
    started: str  # UTC, ISO 8601
    versions: dict[str, str]
    seed: int = 0
    quick: bool = False


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="sample"):
    """One arm of one workload on one link.

    shape: what of the workload varies, such as {"cache_tokens": 128}. how: MEASURED or SIMULATED. unit: what a trial
    makes `units` of. seconds: of each trial, whole. cpu_s: of the client's process, each trial. nbytes: at the
    sockets, framing included, for each way such as `client>0`, `0>client`, `0>1`, and each trial; a way that is not
    there was not counted. predicted_s: of a trial, by the cost model, stated before it was measured. floor_s: a trial
    cannot take less. bound: what limited it, `link`, `cpu`, `rtt`, or '' where that was not told apart. identical:
    every output equal to local PyTorch's, bit for bit; None: not compared.
    """

    run: str
    experiment: str
    workload: str
    arm: str
    link: Link
    executors: int
    unit: str
    seconds: list[float]
    units: int = 1
    shape: dict[str, float] = {}
    how: str = MEASURED
    transport: str = "websocket"
    device: str = "cpu"
    cpu_s: list[float] = []
    nbytes: dict[str, list[int]] = {}
    predicted_s: float | None = None
    floor_s: float | None = None
    bound: str = ""
    identical: bool | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="row"):
    """As bench/harness.py's: median, smallest and largest of the trials, and the median's 95 % interval."""

    run: str
    experiment: str
    measure: str
    arm: str
    unit: str
    median: float | None
    low: float | None
    high: float | None
    trials: int
    low95: float | None
    high95: float | None


class Bar(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="bar"):
    """value: None misses every bar."""

    run: str
    experiment: str
    name: str
    value: float | None
    op: str
    bar: float
    ok: bool


Record = Run | Sample | Row | Bar
R = TypeVar("R", Run, Sample, Row, Bar)
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


class Unreadable(Exception):
    """A line that is no record; says which file and line, and what is wrong."""


def way(source: int | str, target: int | str) -> str:
    """The name of a direction between two ends: the number of an executor, or CLIENT."""
    return f"{source}>{target}"


def write(path: Path, records: Iterable[Record]) -> None:
    """Adds them to the end of the file, which is made if it is not there."""
    with path.open("ab") as file:
        for record in records:
            file.write(_encoder.encode(record) + b"\n")


def read(path: Path) -> Iterator[Record]:
    """The file's records in order, as `numbered`."""
    return (record for _, record in numbered(path))


def numbered(path: Path) -> Iterator[tuple[int, Record]]:
    """The file's records in order, each with the number of its line; empty lines are nothing.

    Raises:
        Unreadable: a line is no record.
        OSError: no such file.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, _decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Unreadable(f"{path}:{number}: {error}") from None


def of_kind(records: Iterable[Record], kind: type[R]) -> list[R]:
    return [record for record in records if isinstance(record, kind)]
