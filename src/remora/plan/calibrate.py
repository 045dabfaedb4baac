"""From measured seconds to a device and its links: what is sent to an executor, and what is made of its answers.
Pure: a session sends the messages, and keeps what comes of them (plan/kept.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from statistics import fmean, median

import msgspec

from remora.ir.graph import Template
from remora.ops.cost import Kind, Work, graph_work
from remora.plan.devices import Curve, Device, Link, Rates, flat
from remora.plan.estimate import costs
from remora.plan.probes import Bench, Probe, Sets
from remora.wire.binding import SiteMemory, encode_run
from remora.wire.messages import Define, Free, Mark, Marked, Site, ToExecutor

CACHE_NBYTES = {
    "cpu": 32 << 20,
    "cuda": 50 << 20,
}  # of the last level, where nobody says more: a server's, an H100's
FASTEST = 1e18  # bytes per second that never bind: the arithmetic rate was measured with its bytes in cache
KERNEL_S = 2e-6  # of the shortest kernel of an asynchronous device, which hides behind its launch
RISING = (Kind.PRODUCT, Kind.ATTENTION)  # more operations a byte never make these slower: noise does
ALIKE = 2.0  # times as fast, at the median probe: nearer than that, devices of one name are taken for equal
SIGMA, FLOOR = 0.25, 0.1  # of kinds that no held-out probe checks; of those that one does, at least


@dataclass(frozen=True)
class Script:
    """What to send, in order, and which marks stand before and after each run of a probe.

    segments, templates, sites, tickets: how many numbers of each it uses up.
    """

    messages: tuple[ToExecutor, ...]
    marks: tuple[tuple[str, int, int], ...]  # probe, ticket before, ticket after
    segments: int
    templates: int
    sites: int
    tickets: int


class _Writer:
    """Numbers templates, sites, segments and tickets from the given first ones."""

    def __init__(self, segment: int, template: int, site: int, ticket: int) -> None:
        self.messages: list[ToExecutor] = []
        self.first = (segment, template, site, ticket)
        self.segment, self.template, self.site, self.ticket = self.first

    def define(self, template: Template) -> tuple[int, SiteMemory]:
        self.messages += (Define(self.template, template.body), Site(self.site, self.template))
        self.template += 1
        self.site += 1
        return self.site - 1, SiteMemory(self.template - 1)

    def run(
        self,
        site: tuple[int, SiteMemory],
        names: Sequence[tuple[int, int, int]],
        holes: Sequence[int | float],
        keep: tuple[int, ...] = (),
    ) -> int:
        self.messages.append(encode_run(site[1], self.segment, site[0], list(names), list(holes), keep, ()))
        self.segment += 1
        return self.segment - 1

    def mark(self) -> int:
        self.messages.append(Mark(self.ticket))
        self.ticket += 1
        return self.ticket - 1


def script(bench: Bench, segment: int = 1, template: int = 0, site: int = 0, ticket: int = 1) -> Script:
    """The messages that measure a device, with numbers from the given ones on; the values are freed at the end."""
    writer = _Writer(segment, template, site, ticket)
    keep = tuple(number for row in range(len(bench.made)) for number in (row, 0))
    made = writer.run(writer.define(bench.prepare), (), bench.holes, keep)
    marks = []
    places = [writer.define(probe.template) for probe in bench.probes]
    for number in range(bench.passes):
        before = writer.mark()
        for probe, place in zip(bench.probes, places, strict=True):
            writer.run(place, [(made, row, 0) for row in probe.inputs], probe.graph.holes)
            after = writer.mark()
            if number:
                marks.append((probe.name, before, after))
            before = after
    writer.messages.append(Free(tuple(number for row in range(len(bench.made)) for number in (made, row, 0))))
    counts = (writer.segment, writer.template, writer.site, writer.ticket)
    used = [end - first for end, first in zip(counts, writer.first, strict=True)]
    return Script(tuple(writer.messages), tuple(marks), *used)


@dataclass(frozen=True)
class Measured:
    """Seconds of one run of each probe, the best of the passes; run_s: of a message, beside what it runs."""

    seconds: Mapping[str, float]
    run_s: float


def measured(told: Script, marked: Mapping[int, Marked], asynchronous: bool) -> Measured:
    """What the executor's marks say. asynchronous: its device's clock counts, else its time in programs.

    Raises:
        KeyError: a mark has not come.
    """
    best: dict[str, float] = {}
    between: list[float] = []
    for name, before, after in told.marks:
        a, b = marked[before], marked[after]
        passed, busy = b.at_s - a.at_s, b.busy_s - a.busy_s
        seconds = passed if asynchronous else busy
        best[name] = min(best.get(name, seconds), seconds)
        if not asynchronous:
            between.append(max(0.0, passed - busy))
    return Measured(best, median(between) if between else 5e-5)


def fastest(found: Sequence[Measured]) -> Measured:
    """Of several measurements of one device: whatever else the machine did made some slower, and none faster."""
    seconds = {name: min(one.seconds[name] for one in found) for name in found[0].seconds}
    return Measured(seconds, min(one.run_s for one in found))


def as_alike(found: Sequence[tuple[str, Measured]]) -> list[Measured]:
    """Devices of one name and about one speed are one kind of device, measured several times.

    found: of each device, its name and the best of what it took. Else noise makes one of them seem the better place.
    """
    return [
        fastest([own, *(other for name, other in found if name == kind and _is_alike(own, other))])
        for kind, own in found
    ]


def _is_alike(one: Measured, other: Measured) -> bool:
    if one.seconds.keys() != other.seconds.keys():
        return False
    ratios = [log(one.seconds[name] / other.seconds[name]) for name in one.seconds]
    return bool(ratios) and abs(median(ratios)) <= log(ALIKE)


@dataclass(frozen=True)
class Fitted:
    """A device, and predicted over measured for each probe, with those that the fit has not seen apart."""

    device: Device
    ratios: Mapping[str, float]
    held_out: Mapping[str, float]


def fit(
    name: str,
    bench: Bench,
    found: Measured,
    memory_nbytes: int,
    cache_nbytes: int = 0,
    asynchronous: bool = False,
) -> Fitted:
    """The device that explains the probes' seconds.

    Raises:
        ValueError: a probe took no time, or is missing; names it.
    """
    for probe in bench.probes:
        if not found.seconds.get(probe.name, 0.0) > 0.0:
            raise ValueError(
                f"calibrating {name}: probe {probe.name!r} took {found.seconds.get(probe.name)} s"
            )
    fitting = _Fit(bench, found, asynchronous)
    first = Device(
        name,
        memory_nbytes,
        fitting.call_s,
        fitting.view_s,
        found.run_s,
        fitting.rates({}),
        cache_nbytes,
        asynchronous,
    )
    ratios = {probe.name: predict(first, probe) / found.seconds[probe.name] for probe in bench.probes}
    held = {probe.name: ratios[probe.name] for probe in bench.probes if probe.sets is Sets.NOTHING}
    sigmas = _sigmas(bench.probes, held)
    device = msgspec.structs.replace(first, rates=fitting.rates(sigmas))
    return Fitted(device, ratios, held)


def predict(device: Device, probe: Probe) -> float:
    """Seconds of one run of a probe, without the message's own."""
    return costs(probe.graph, (device,)).part(0).duration.seconds - device.run_s


def _sigmas(probes: Sequence[Probe], held: Mapping[str, float]) -> dict[Kind, float]:
    """Relative error by kind: of the probes that were held out, and never less than the floor."""
    errors: dict[Kind, list[float]] = {}
    for probe in probes:
        if probe.name in held:
            errors.setdefault(probe.kind, []).append(log(held[probe.name]) ** 2)
    return {kind: max(FLOOR, min(2.0, sqrt(fmean(squares)))) for kind, squares in errors.items()}


class _Fit:
    """Takes the rates from the probes, one after the other: what a later one needs, an earlier one has set."""

    def __init__(self, bench: Bench, found: Measured, asynchronous: bool) -> None:
        self.bench, self.seconds, self.asynchronous = bench, found.seconds, asynchronous
        fixed = {probe.kind: self._per_row(probe) for probe, _ in self._of(Sets.FIXED)}
        self.repeated_s = fixed[Kind.MOVE]
        least = KERNEL_S if asynchronous else 1e-8
        self.fixed_s = {kind: max(least, seconds - self.repeated_s) for kind, seconds in fixed.items()}
        self.call_s = max(self._call_s(probe) for probe, _ in self._of(Sets.CALL))
        self.view_s = min(self._per_row(probe) for probe, _ in self._of(Sets.VIEW))

    def _call_s(self, probe: Probe) -> float:
        """Of one row among different ones, without what its kernel takes at least."""
        if self.asynchronous:
            return self._per_row(probe)
        kernels_s = fmean(self.fixed_s.get(work.kind, 0.0) for work in graph_work(probe.graph))
        return max(self.repeated_s, self._per_row(probe) - kernels_s)

    def rates(self, sigmas: Mapping[Kind, float]) -> dict[Kind, Rates]:
        """Rates of every kind that a probe measured."""
        stream = self._curve(Sets.HOT, Kind.MOVE)
        slowest = flat(stream.points[-1][1])
        product = self._curve(Sets.COLD, Kind.PRODUCT)
        hot = {Kind.MOVE: stream, Kind.PRODUCT: self._curve(Sets.HOT, Kind.PRODUCT)}
        hot[Kind.GATHER] = self._curve(Sets.HOT, Kind.GATHER)
        cold = {Kind.MOVE: slowest, Kind.GATHER: slowest}
        flops = self._flops()
        return {
            kind: Rates(
                self.fixed_s.get(kind, self.fixed_s[Kind.MOVE]),
                hot.get(kind, flat(FASTEST)),
                cold.get(kind, product),
                flops.get(kind, {}),
                sigmas.get(kind, SIGMA),
            )
            for kind in {*hot, *flops}
        }

    def _of(self, sets: Sets) -> Iterator[tuple[Probe, Work]]:
        """Probes that set something, each with the work of one of its rows."""
        for probe in self.bench.probes:
            if probe.sets is sets:
                yield probe, graph_work(probe.graph)[0]

    def _per_row(self, probe: Probe) -> float:
        return self.seconds[probe.name] / len(probe.graph.rows)

    def _kernel_s(self, probe: Probe) -> float:
        """Of one row, what is left when the call and the kernel's fixed time are taken away."""
        seconds = self._per_row(probe)
        if self.asynchronous:
            launch_s = self.call_s / len(probe.graph.rows)  # the first one hides behind nothing
            return max(seconds - launch_s - KERNEL_S, seconds / 2)
        fixed_s = self.fixed_s.get(probe.kind, self.fixed_s[Kind.MOVE])
        return max(seconds - self.repeated_s - fixed_s, seconds / 10)

    def _curve(self, sets: Sets, kind: Kind) -> Curve:
        return _ascending(
            [
                (work.nbytes, work.nbytes / self._kernel_s(probe))
                for probe, work in self._of(sets)
                if probe.kind is kind
            ]
        )

    def _flops(self) -> dict[Kind, dict[str, Curve]]:
        points: dict[Kind, dict[str, list[tuple[float, float]]]] = {}
        for probe, work in self._of(Sets.FLOPS):
            point = (work.flops / work.nbytes, work.flops / self._kernel_s(probe))
            points.setdefault(probe.kind, {}).setdefault(work.dtype, []).append(point)
        return {
            kind: {dtype: _ascending(found, kind in RISING) for dtype, found in by_dtype.items()}
            for kind, by_dtype in points.items()
        }


def _ascending(points: list[tuple[float, float]], rising: bool = False) -> Curve:
    """A curve through the points; of two of one size, through the faster. rising: no rate is below an earlier one."""
    best: dict[float, float] = {}
    for size, rate in sorted(points):
        least = max(best.values(), default=0.0) if rising else 0.0
        best[size] = max(rate, best.get(size, 0.0), least)
    return Curve(tuple(best.items()))


def fit_link(samples: Sequence[tuple[int, float]], round_trip: bool = False) -> Link:
    """A link from messages of (bytes, seconds): seconds = fixed + bytes / rate, by least relative squares.

    round_trip: the seconds hold the way back of a small answer too, and half of what is fixed is one way.

    Raises:
        ValueError: there are no two sizes.
    """
    if len({nbytes for nbytes, _ in samples}) < 2:
        raise ValueError(f"a link is measured with messages of two sizes at least, got {list(samples)}")
    weights = [1.0 / max(seconds, 1e-9) ** 2 for _, seconds in samples]
    whole = sum(weights)
    mean_n = sum(w * n for w, (n, _) in zip(weights, samples, strict=True)) / whole
    mean_s = sum(w * s for w, (_, s) in zip(weights, samples, strict=True)) / whole
    spread = sum(w * (n - mean_n) ** 2 for w, (n, _) in zip(weights, samples, strict=True))
    slope = sum(w * (n - mean_n) * (s - mean_s) for w, (n, s) in zip(weights, samples, strict=True)) / spread
    fastest = max(nbytes / seconds for nbytes, seconds in samples if seconds > 0)
    per_byte_s = slope if slope > 0 else 1.0 / max(fastest, 1.0)
    fixed_s = max(0.0, mean_s - per_byte_s * mean_n)
    misses = [
        log(max(seconds, 1e-9) / max(fixed_s + nbytes * per_byte_s, 1e-9)) for nbytes, seconds in samples
    ]
    sigma = max(FLOOR, min(2.0, sqrt(fmean(miss * miss for miss in misses))))
    return Link(1.0 / per_byte_s, fixed_s / 2 if round_trip else fixed_s, 0.0, sigma)
