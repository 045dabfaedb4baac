"""Every test starts from the same settings: no REMORA_* of the caller's, a cache of its own."""

from __future__ import annotations

import os
import random
import tempfile
from typing import Any

from hypothesis import settings

for name in [
    name for name in os.environ if name.startswith("REMORA_") and not name.startswith("REMORA_TEST_")
]:
    del os.environ[name]
_cache = tempfile.TemporaryDirectory(prefix="remora-test-cache-")
os.environ["REMORA_CACHE"] = _cache.name  # subprocesses of tests inherit it

# One for all processes of a run, since tests are named by it.
os.environ.setdefault("ZOO_SEED", str(random.SystemRandom().randrange(10_000)))

# No deadline: shared machines stall. Derandomised, so that a red run is red again.
settings.register_profile("remora", deadline=None, derandomize=True)
settings.load_profile("remora")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Seeds of this run (`record_property`), by which a test can be repeated."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in (
                getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ()
            ):
                terminalreporter.write_line(f"{report.nodeid}: {name}={value}")
