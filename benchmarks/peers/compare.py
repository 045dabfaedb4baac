"""The same programs through Remora, its peers and local PyTorch, taking turns; the last line of output is JSON.

    python benchmarks/peers/compare.py [--quick] [--out FILE.jsonl] [--cache FOLDER] [--python PYTHON]

Makes an environment for each peer the first time (environments.py). Each arm has a client, a server and a link of its
own, one thread each, and repeats a program until it is warm; then the arms take turns in random order. What gives other
tokens or losses than local is reported so, and not compared; what hangs or crashes is cut and reported.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import environments
from contestants import Contestant, Failed, Peer, Trial, chosen, contestant

from remora.bench import records
from remora.bench.harness import versions
from remora.bench.intervals import of_median, of_ratio
from remora.bench.records import CLIENT, Link, Record, Row, Run, Sample, way

T = TypeVar("T")
LOCAL = "local"
GPT2_NBYTES = 497_759_232  # of its parameters, the tied one once


@dataclass(frozen=True)
class Workload:
    """units: of a trial, in full and quickly."""

    name: str
    unit: str
    units: tuple[int, int]
    rtts_ms: tuple[float, ...] = (0.0, 50.0)


WORKLOADS = (
    Workload("GPT-2 124M generate", "token", (16, 8)),
    Workload("12 thin layers generate", "token", (32, 16)),
    Workload("MLP + Adam", "step", (20, 20)),
    Workload("tiny GPT, tied weights + Adam", "step", (10, 10)),
    Workload("upload of GPT-2", "upload", (1, 1), (0.0,)),
)


@dataclass
class Entry:
    """One arm of one workload at one round trip, and what came of it. failure: why there is no more."""

    peer: Peer
    rtt_ms: float
    running: Contestant | None = None
    trials: list[Trial] = field(default_factory=list)
    failure: str = ""
    identical: bool | None = None

    @property
    def name(self) -> str:
        return f"{self.peer.name}, RTT {self.rtt_ms:g} ms" if self.peer.name != LOCAL else LOCAL


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(
    workload: Workload, peers: Sequence[Peer], options: argparse.Namespace, pythons: dict[str, Path]
) -> list[Entry]:
    """All arms of a workload, in turns. A failure ends an arm, and only that."""
    units, trials = workload.units[options.quick], 3 if options.quick else 5
    rng = random.Random(options.seed)
    entries = [
        Entry(peer, rtt_ms) for peer in peers for rtt_ms in workload.rtts_ms if not rtt_ms or peer.listens
    ]
    with ExitStack() as stack:
        for entry in entries:
            python = pythons[entry.peer.environment]
            try:
                entry.running = stack.enter_context(
                    contestant(entry.peer, entry.rtt_ms, workload.name, units, python, options.logs)
                )
            except Failed as error:
                _fail(entry, workload, error)
        for entry in entries:
            if entry.running is not None:
                say(f"{workload.name}: {entry.name} warms up")
                _try(entry, workload, entry.running.ready)
        say(f"{workload.name}: {trials} trials of {units} each")
        for _ in range(trials):
            rng.shuffle(entries)
            for entry in entries:
                if entry.running is not None and (trial := _try(entry, workload, entry.running.trial)):
                    entry.trials.append(trial)
    entries.sort(key=lambda entry: ([peer.name for peer in peers].index(entry.peer.name), entry.rtt_ms))
    _compare(entries)
    return entries


def _try(entry: Entry, workload: Workload, do: Callable[[], T]) -> T | None:
    """What it gives; None if it failed, and then the arm is out."""
    try:
        return do()
    except Failed as error:
        _fail(entry, workload, error)
        return None


def _fail(entry: Entry, workload: Workload, error: Failed) -> None:
    entry.failure, entry.running = str(error), None
    say(f"{workload.name}: {entry.name} FAILED: {error}")


def _compare(entries: Sequence[Entry]) -> None:
    """Trial by trial: all arms are equally far, since all warmed up as long."""
    local = next(entry for entry in entries if entry.peer.name == LOCAL)
    for entry in entries:
        pairs = list(zip(entry.trials, local.trials, strict=False))
        if pairs:
            entry.identical = all(trial.found == expected.found for trial, expected in pairs)


def as_records(workload: Workload, entries: Sequence[Entry], run: str, units: int) -> list[Record]:
    found: list[Record] = []
    for entry in entries:
        both: dict[str, Any] = {"run": run, "experiment": "peers", "arm": entry.peer.name}
        if entry.trials:
            found.append(
                Sample(
                    **both,
                    workload=workload.name,
                    link=Link(by="proxy", rtt_ms=entry.rtt_ms) if entry.rtt_ms else Link(by="loopback"),
                    executors=0 if entry.peer.name == LOCAL else 1,
                    unit=workload.unit,
                    units=units,
                    seconds=[trial.seconds for trial in entry.trials],
                    nbytes=_nbytes(entry) if workload.unit != "upload" else {},
                    transport=entry.peer.arm if entry.peer.arm not in ("remora", LOCAL) else "websocket",
                    identical=entry.identical,
                )
            )
        if entry.failure:
            found.append(
                _row(both, f"{workload.name}, RTT {entry.rtt_ms:g} ms, failed: {entry.failure}", "", [])
            )
        elif workload.unit == "upload" and entry.peer.name != LOCAL and entry.trials:
            rates = [GPT2_NBYTES / trial.seconds / 1e6 for trial in entry.trials]
            found.append(_row(both, workload.name, "MB/s of its parameters", rates))
    return found


def _nbytes(entry: Entry) -> dict[str, list[int]]:
    """Where every trial was counted."""
    sent = [trial.sent for trial in entry.trials if trial.sent is not None]
    received = [trial.received for trial in entry.trials if trial.received is not None]
    if not len(sent) == len(received) == len(entry.trials):
        return {}
    return {way(CLIENT, 0): sent, way(0, CLIENT): received}


def _row(both: dict[str, Any], measure: str, unit: str, values: Sequence[float]) -> Row:
    if not values:
        nothing = dict.fromkeys(("median", "low", "high", "low95", "high95"))
        return Row(**both, measure=measure, unit=unit, trials=0, **nothing)
    found = of_median(values)
    return Row(
        **both,
        measure=measure,
        unit=unit,
        median=found.median,
        low=min(values),
        high=max(values),
        trials=len(values),
        low95=found.low,
        high95=found.high,
    )


def lines_of(workload: Workload, entries: Sequence[Entry], units: int) -> list[dict[str, Any]]:
    """What the summary says of each arm: time for a unit, ratio to local in the same run, bytes for a unit."""
    local = next(entry for entry in entries if entry.peer.name == LOCAL)
    found = []
    for entry in entries:
        line: dict[str, Any] = {"workload": workload.name, "arm": entry.peer.name, "rtt_ms": entry.rtt_ms}
        if entry.failure:
            found.append({**line, "failed": entry.failure})
            continue
        seconds = [trial.seconds for trial in entry.trials]
        line["ms"] = round(of_median(seconds).median / units * 1e3, 4)
        if workload.unit != "upload" and len(local.trials) == len(seconds):
            ratio = of_ratio(seconds, [trial.seconds for trial in local.trials])
            line["over_local"] = [round(number, 3) for number in (ratio.median, ratio.low, ratio.high)]
        if (nbytes := _nbytes(entry)) and workload.unit != "upload":
            line["bytes"] = round(
                of_median([sum(both) for both in zip(*nbytes.values(), strict=True)]).median / units
            )
        found.append({**line, "equal_to_local": entry.identical})
    return found


def _print(lines: Sequence[dict[str, Any]]) -> None:
    for line in lines:
        if "failed" in line:
            text = f"FAILED: {line['failed']}"
        else:
            ratio = (
                "{:6.2f} x local [{:.2f}, {:.2f}]".format(*line["over_local"]) if "over_local" in line else ""
            )
            text = f"{line['ms']:10.2f} ms {ratio:34} {line.get('bytes', ''):>9} B"
            text += "" if line["equal_to_local"] else "   NOT LOCAL'S RESULT"
        print(f"{line['workload']:30} {line['arm']:26} RTT {line['rtt_ms']:2.0f} {text}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 trials of fewer tokens, not 5")
    parser.add_argument("--out", type=Path, help="add records to this file")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "remora-peers")
    parser.add_argument("--python", default="python3.12", help="of all environments")
    parser.add_argument("--workload", action="append", choices=[one.name for one in WORKLOADS])
    parser.add_argument("--peer", action="append", default=[], help="local is always there")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the trials")
    parser.add_argument("--logs", type=Path, help="a folder for what servers and clients print")
    return parser.parse_args()


def _end(*_: object) -> NoReturn:
    sys.exit("ended")


def main() -> None:
    signal.signal(signal.SIGTERM, _end)  # servers and clients end with their contexts
    options = _options()
    peers = chosen(options.peer)
    pythons = {
        name: environments.make(name, options.cache, options.python)
        for name in {peer.environment for peer in peers}
    }
    if options.logs is None:
        options.logs = Path(tempfile.mkdtemp(prefix="remora-peers-"))
    options.logs.mkdir(parents=True, exist_ok=True)
    about = versions()
    pinned = dict(
        one.split("==") for one in (*environments.TORCH, *sum(environments.EXTENSIONS.values(), ()))
    )
    run = Run(
        run=secrets.token_hex(4),
        experiment="peers",
        command=shlex.join(["python", "benchmarks/peers/compare.py", *sys.argv[1:]]),
        commit=about.pop("commit"),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={**about, **pinned, "python": options.python},
        seed=options.seed,
        quick=options.quick,
    )
    kept: list[Record] = [run]
    summary = []
    for workload in WORKLOADS:
        if options.workload and workload.name not in options.workload:
            continue
        units = workload.units[options.quick]
        entries = measure(workload, peers, options, pythons)
        lines = lines_of(workload, entries, units)
        _print(lines)
        summary += lines
        kept += as_records(workload, entries, run.run, units)
    if options.out:
        records.write(options.out, kept)
    print(json.dumps({"experiment": "peers", "run": run.run, "lines": summary}))


if __name__ == "__main__":
    main()
