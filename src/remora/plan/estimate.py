"""Predicted seconds of rows, of parts of a graph and of a whole placed graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from remora.ir.annotated import Graph
from remora.ir.node import Ref
from remora.ops.cost import Kind, Work, graph_work
from remora.plan.devices import Device
from remora.plan.duration import Duration, Estimate


@dataclass(frozen=True)
class Costs:
    """A graph's rows on each device of a pool, counted once: what policies add up.

    kernel_s: by device, by row.
    """

    works: tuple[Work, ...]
    devices: tuple[Device, ...]
    kernel_s: tuple[tuple[float, ...], ...]

    def row_s(self, device: int, row: int) -> float:
        """Seconds of one row by itself."""
        known, kernel_s = self.devices[device], self.kernel_s[device][row]
        host_s = known.host_s(self.works[row])
        return max(host_s, kernel_s) if known.asynchronous else host_s + kernel_s

    def part(self, device: int, rows: Iterable[int] | None = None) -> Estimate:
        """Rows that run as one template on a device; all of them if none are given."""
        known, kernel_s = self.devices[device], self.kernel_s[device]
        chosen = range(len(self.works)) if rows is None else rows
        host_s, device_s = known.run_s, 0.0
        flops = read = written = 0
        by_kind: dict[Kind, float] = {}
        for row in chosen:
            work, seconds = self.works[row], kernel_s[row]
            flops += work.flops
            read += work.bytes_read
            written += work.bytes_written
            by_kind[work.kind] = by_kind.get(work.kind, 0.0) + seconds
            host_s += known.host_s(work)
            if seconds:
                device_s = (max(device_s, host_s) if known.asynchronous else device_s) + seconds
        seconds = max(host_s, device_s) if known.asynchronous else host_s + device_s
        duration = Duration(seconds, _errors(known, host_s, by_kind, seconds))
        return Estimate(flops, read, written, 0, duration)


def _errors(device: Device, host_s: float, by_kind: dict[Kind, float], seconds: float) -> dict[str, float]:
    """Each kind's share of the time, with that kind's relative error."""
    shares = {kind.value: (spent, device.sigma_of(kind)) for kind, spent in by_kind.items() if spent}
    shares["calls"] = (host_s, device.sigma)
    busy = sum(spent for spent, _ in shares.values())
    scale = seconds / busy if busy else 0.0
    return {f"{device.name}: {name}": spent * scale * sigma for name, (spent, sigma) in shares.items()}


def costs(graph: Graph, devices: Sequence[Device], works: tuple[Work, ...] | None = None) -> Costs:
    """Counts and times every row on every device."""
    counted = graph_work(graph) if works is None else works
    cold: dict[int, tuple[int, ...]] = {}
    table = []
    for device in devices:
        size = device.cache_nbytes
        if size not in cold:
            cold[size] = cold_nbytes(graph, counted, size)
        table.append(tuple(map(device.kernel_s, counted, cold[size])))
    return Costs(counted, tuple(devices), tuple(table))


def cold_nbytes(graph: Graph, works: Sequence[Work], cache_nbytes: int) -> tuple[int, ...]:
    """Of the bytes that each row moves, those that come from memory and not from a cache of this size.

    A row finds in cache what was touched not longer ago than the cache holds. What comes from outside was touched in
    the last run of the graph, which is taken to repeat. cache_nbytes 0: everything is cold.
    """
    whole = sum(work.nbytes for work in works)
    touched: dict[tuple[str, int, int], int] = {}
    traffic = 0
    found = []
    for number, (row, work) in enumerate(zip(graph.rows, works, strict=True)):
        if work.kind is Kind.FREE:
            found.append(0)
            continue
        cold = work.bytes_written if work.bytes_written > cache_nbytes else 0
        seen: dict[tuple[str, int, int], int] = {}
        for arg in row.tensors():
            facts = graph.facts(arg)
            storage = graph.storage(arg)
            if storage not in seen:
                seen[storage] = work.bytes_read if facts is None else facts.nbytes
        for storage, nbytes in seen.items():
            if traffic - touched.get(storage, traffic - whole) >= cache_nbytes:
                cold += nbytes
        traffic += work.nbytes
        for storage in seen:
            touched[storage] = traffic
        for out in range(len(row.outs)):
            touched[graph.storage(Ref(number, out))] = traffic
        found.append(min(cold, work.nbytes))
    return tuple(found)
