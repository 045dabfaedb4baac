"""The experiments by name. Each is a module with `run(options, report)`, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from remora.bench.harness import Impossible, Options, Report

EXPERIMENTS = {
    "decode": "remora.bench.decode",
    "train": "remora.bench.training",
    "zoo": "remora.bench.zoo",
    "compat": "remora.bench.compat",
    "semantics": "remora.bench.semantics",
    "placement": "remora.bench.placement",
    "calibration": "remora.bench.calibration",
    "prefill": "remora.bench.prefill",
    "vision": "remora.bench.vision",
}


def run(name: str, options: Options) -> Report:
    """Runs one experiment. A measurement that cannot be true ends it with a missed bar.

    Raises:
        KeyError: there is none of this name.
    """
    module = import_module(EXPERIMENTS[name])
    report = Report(name)
    try:
        module.run(options, report)
    except Impossible as error:
        report.bar(f"impossible measurements ({error})", 1, "==", 0)
    return report
