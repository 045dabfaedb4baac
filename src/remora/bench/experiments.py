"""The experiments by name. Each is a module with `run(options, report)`, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from remora.bench.harness import Options, Report

EXPERIMENTS = {
    "decode": "remora.bench.decode",
}


def run(name: str, options: Options) -> Report:
    """Runs one experiment.

    Raises:
        KeyError: there is none of this name.
    """
    module = import_module(EXPERIMENTS[name])
    report = Report(name)
    module.run(options, report)
    return report
