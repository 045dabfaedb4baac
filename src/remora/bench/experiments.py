"""The experiments by name. Each is a module with `run(options, report)`, imported when it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

from remora.bench.forks import ArmFailed
from remora.bench.harness import Impossible, NotAsSaid, Options, Report

EXPERIMENTS = {
    "seed": "remora.bench.seed",
    "modes": "remora.bench.published",
    "scale": "remora.bench.scale",
    "decode": "remora.bench.decode",
    "train": "remora.bench.training",
    "zoo": "remora.bench.zoo",
    "compat": "remora.bench.compat",
    "semantics": "remora.bench.semantics",
    "placement": "remora.bench.placement",
    "calibration": "remora.bench.calibration",
    "sim": "remora.bench.simulated",
    "prefill": "remora.bench.prefill",
    "vision": "remora.bench.vision",
    "multimodal": "remora.bench.multimodal",
}


# What `all` leaves out: these compare values with local PyTorch, take minutes each, and measure no time.
NO_MEASUREMENTS = ("zoo", "compat", "semantics")


def run(name: str, options: Options) -> Report:
    """Runs one experiment. A measurement that cannot be true, or is not of its arm, ends it with a missed bar.

    Raises:
        KeyError: there is none of this name.
    """
    module = import_module(EXPERIMENTS[name])
    report = Report(name)
    try:
        module.run(options, report)
    except NotAsSaid as error:
        report.bar(f"runs that were not what their arm says ({error})", 1, "==", 0)
    except Impossible as error:
        report.bar(f"impossible measurements ({error})", 1, "==", 0)
    except ArmFailed as error:
        report.bar(f"arms that failed ({error})", 1, "==", 0)
    return report


def run_all(options: Options, out: Path | None) -> int:
    """Every experiment that measures, each in a process of its own, so that none finds what another left behind.

    The last line of output is JSON: for each, its seconds and whether all its bars held. Returns 1 if one did not.
    """
    command = [sys.executable, "-m", "remora.cli", "bench"]
    rest = ["--json", "--seed", str(options.seed), *(["--quick"] if options.quick else [])]
    rest += ["--out", str(out)] if out is not None else []
    found = {}
    for name in EXPERIMENTS:
        if name in NO_MEASUREMENTS:
            continue
        started = time.perf_counter()
        done = subprocess.run([*command, name, *rest], stdout=subprocess.DEVNULL)
        found[name] = {"seconds": round(time.perf_counter() - started, 1), "ok": done.returncode == 0}
    print(json.dumps({"all": found}))
    return int(not all(one["ok"] for one in found.values()))
