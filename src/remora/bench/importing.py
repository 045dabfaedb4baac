"""How long `import remora` takes once torch is there."""

from __future__ import annotations

import compileall
import subprocess
import sys
from pathlib import Path

import remora
from remora.bench.harness import Report

_SCRIPT = (
    "import time, torch; t = time.perf_counter(); import remora; "
    "print(time.perf_counter() - t, hasattr(torch, 'remora'))"
)


def measure(report: Report, quick: bool) -> None:
    """The bar on the import, each in a process of its own, with bytecode, which an installer writes."""
    times: list[float] = []
    compileall.compile_dir(Path(remora.__file__).parent, quiet=1)
    for _ in range(3 if quick else 5):
        done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
        seconds, registered = done.stdout.split()
        assert registered == "True", "the import did not register the device"
        times.append(float(seconds))
    median = report.row("import remora", "remora", "s", times)
    report.bar("import remora after import torch, s", median, "<=", 0.3)
