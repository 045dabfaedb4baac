"""The suite for placement: programs of every kind, with random weights, outputs comparable bit for bit."""

from __future__ import annotations

from remora.bench.workloads import decoders, networks
from remora.bench.workloads.workload import Build, Outputs, Running, Workload

__all__ = ["SUITE", "Build", "Outputs", "Running", "Workload", "named"]

SUITE: dict[str, Workload] = {
    workload.name: workload for workload in (*networks.WORKLOADS, *decoders.WORKLOADS)
}


def named(names: tuple[str, ...] = ()) -> list[Workload]:
    """Those of the suite, in its order; all without names.

    Raises:
        ValueError: there is none of a name; lists what there is.
    """
    unknown = [name for name in names if name not in SUITE]
    if unknown:
        raise ValueError(f"there is no workload {', '.join(unknown)}; there is: {', '.join(SUITE)}")
    return [workload for name, workload in SUITE.items() if not names or name in names]
