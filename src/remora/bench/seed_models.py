"""Part of the experiment `seed`: a real model's decode under the same three ideas, by Remora's own policies.

GPT-2's cache grows, so every step makes a new one: `blind` moves it whole to the executor whose turn it is, `split`
keeps it apart from the layers that read it, `semantic` leaves it where it is.
"""

from __future__ import annotations

import random

from remora.bench import workloads
from remora.bench.arms import LOCAL, Arm
from remora.bench.contest import BETWEEN, BOTH_WAYS, Entry, Result, Setting, carried, contest, on_cpu, row
from remora.bench.harness import Report
from remora.bench.links import Executors
from remora.bench.workloads import Build

POLICIES = ("blind", "split", "semantic")
NAME = "gpt2-decode"
TRIALS, QUICK_TRIALS = 5, 3


def measure(
    report: Report, pool: Executors, about: str, bound: str, quick: bool, rng: random.Random
) -> dict[str, Result]:
    """Decode from context 512 on, at one rate; the steps of a trial go on from those before it."""
    workload = workloads.SUITE[NAME]
    build, units = workload.make(quick), workload.count(quick)
    setting = Setting(NAME + (", quick form" if quick else ""), workload.unit, {"context": 512})
    entries = [_entry(LOCAL, build, units, "")]
    entries += [
        _entry(Arm(policy, 2, policy), build, units, bound if policy != "semantic" else "")
        for policy in POLICIES
    ]
    results = contest(report, setting, entries, pool, QUICK_TRIALS if quick else TRIALS, rng)
    for result in results.values():
        row(report, setting, about, result)
    for name in POLICIES:
        for direction in (BOTH_WAYS, BETWEEN):
            each = [carried(trial.nbytes)[direction] / units for trial in results[name].trials]
            report.row(f"{setting.workload}, {about}, {direction}", name, "B/token", each)
    for name in ("blind", "split"):
        seconds = results[name].seconds, results["semantic"].seconds
        report.ratio(f"{setting.workload}, {about}: time, {name} / this", "semantic", *seconds)
    return results


def _entry(arm: Arm, build: Build, units: int, bound: str) -> Entry:
    return Entry(arm, build, units, on_cpu(build), warm_ups=4, bound=bound, goes_on=True)
