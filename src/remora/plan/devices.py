"""What the cost model knows of executors: how fast a device does each kind of work, how fast links carry bytes.

Measured (plan/calibrate.py) or published (plan/presets.py); read from a file, everything is checked.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from math import exp, log
from typing import Annotated

import msgspec

from remora.ops.cost import Kind, Work
from remora.plan.duration import Duration

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e30)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Relative = Annotated[float, msgspec.Meta(ge=0, le=10)]
Nbytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
Name = Annotated[str, msgspec.Meta(max_length=200)]

ITEMSIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex64": 16, "complex128": 32}
BORROWED_SIGMA = 0.5  # of a kind that nobody measured, from the nearest that somebody did
BORROWS = {
    Kind.CONVOLUTION: Kind.PRODUCT,
    Kind.ATTENTION: Kind.PRODUCT,
    Kind.FACTOR: Kind.PRODUCT,
    Kind.MATH: Kind.MOVE,
    Kind.REDUCE: Kind.MOVE,
    Kind.GATHER: Kind.MOVE,
    Kind.SORT: Kind.MOVE,
}
CLIENT = -1  # the client, where an executor's number is asked for
FACTOR_SHARE = 0.15  # of a product's rate that decompositions reach: they are chains of small products


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rate that depends on a size: (size, per second), sizes ascending. Between points log-linear, flat beyond."""

    points: Annotated[tuple[tuple[Positive, Positive], ...], msgspec.Meta(min_length=1, max_length=64)]

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.points]
        if any(a >= b for a, b in pairwise(sizes)):
            raise ValueError(f"sizes of a curve must ascend, got {sizes}")

    def at(self, size: float) -> float:
        """The rate at a size, per second."""
        points = self.points
        after = bisect_right(points, size, key=lambda point: point[0])
        if after == 0:
            return points[0][1]
        if after == len(points):
            return points[-1][1]
        (low, slow), (high, fast) = points[after - 1], points[after]
        share = log(size / low) / log(high / low)
        return exp(log(slow) + share * (log(fast) - log(slow)))


def flat(per_s: float) -> Curve:
    """The same rate for all sizes."""
    return Curve(((1.0, per_s),))


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How fast a device does one kind of work.

    fixed_s: of one kernel, however small. flops: by dtype, operations per second over operations per byte.
    hot, cold: bytes per second over the bytes that a kernel moves: from cache, and from memory.
    sigma: relative error of a prediction.
    """

    fixed_s: Seconds
    hot: Curve
    cold: Curve
    flops: dict[Name, Curve] = {}
    sigma: Relative = 0.2


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An executor's device.

    call_s: the host's time for one row. view_s: for one that computes nothing. run_s: for one message that runs a
    template.
    asynchronous: the host goes on while the device computes. cache_nbytes: what was touched within so many bytes of
    traffic is still near; 0: it makes no difference. sigma: relative error of these three.
    """

    name: Name
    memory_nbytes: Nbytes
    call_s: Seconds
    view_s: Seconds
    run_s: Seconds
    rates: dict[Kind, Rates]
    cache_nbytes: Nbytes = 0
    asynchronous: bool = False
    sigma: Relative = 0.2

    def __post_init__(self) -> None:
        for kind in (Kind.MOVE, Kind.PRODUCT):
            if kind not in self.rates:
                raise ValueError(f"device {self.name!r} says nothing of its rate for {kind.value}")

    @property
    def memory_rate(self) -> float:
        """Bytes per second of large copies from memory."""
        return self.rates[Kind.MOVE].cold.points[-1][1]

    def peak_flops(self, dtype: str) -> float:
        """Operations per second of large products; without any measured, as many as bytes that it moves."""
        known = self.rates[Kind.PRODUCT].flops
        if not known:
            return self.memory_rate
        name, share = (dtype, 1.0) if dtype in known else _nearest(dtype, known)
        return share * max(rate for _, rate in known[name].points)

    def host_s(self, work: Work) -> float:
        """Seconds of the host for a row."""
        return self.view_s if work.kind is Kind.FREE else self.call_s

    def kernel_s(self, work: Work, cold_nbytes: int = 0) -> float:
        """Seconds of the row's kernels on the device: bound by arithmetic, or by bytes.

        cold_nbytes: those of the bytes moved that are not in cache.
        """
        if work.kind is Kind.FREE:
            return 0.0
        rates = self._rates(work.kind)
        moved = work.nbytes
        cold = min(cold_nbytes, moved)
        memory_s = (moved - cold) / rates.hot.at(moved) + cold / rates.cold.at(moved) if moved else 0.0
        return work.kernels * rates.fixed_s + max(memory_s, self._compute_s(rates, work))

    def sigma_of(self, kind: Kind) -> float:
        """Relative error of `kernel_s`."""
        rates = self.rates.get(kind)
        return rates.sigma if rates is not None else max(BORROWED_SIGMA, self._rates(kind).sigma)

    def _rates(self, kind: Kind) -> Rates:
        return self.rates.get(kind) or self.rates[BORROWS[kind]]

    def _compute_s(self, rates: Rates, work: Work) -> float:
        if not work.flops or not rates.flops:
            return 0.0
        dtype, share = work.dtype, 1.0
        if dtype not in rates.flops:
            dtype, share = _nearest(work.dtype, rates.flops)
        if work.kind is Kind.FACTOR and Kind.FACTOR not in self.rates:
            share *= FACTOR_SHARE
        return work.flops / (share * rates.flops[dtype].at(work.flops / max(1, work.nbytes)))


def _nearest(dtype: str, known: dict[str, Curve]) -> tuple[str, float]:
    """The known dtype that is nearest in width, and this one's share of its rate: half for twice the width, and
    never more, since narrow types need hardware of their own."""
    width = ITEMSIZES.get(dtype, 4)
    name = min(known, key=lambda other: (abs(log(ITEMSIZES.get(other, 4) / width)), other))
    return name, min(1.0, ITEMSIZES.get(name, 4) / width)


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One direction between two ends. latency_s: one way. message_s: what each message costs at its ends."""

    bytes_per_s: Positive
    latency_s: Seconds
    message_s: Seconds = 0.0
    sigma: Relative = 0.2

    def seconds(self, nbytes: int) -> float:
        """From the sender's start to the receiver's end."""
        return self.latency_s + self.busy_s(nbytes)

    def busy_s(self, nbytes: int) -> float:
        """How long the link cannot begin another transfer."""
        return self.message_s + nbytes / self.bytes_per_s

    def duration(self, nbytes: int, source: str = "link") -> Duration:
        seconds = self.seconds(nbytes)
        return Duration(seconds, {source: seconds * self.sigma})


class Pool(msgspec.Struct, frozen=True):
    """The executors and how they are joined. links: by (from, to). client: to and from each executor."""

    devices: tuple[Device, ...]
    links: dict[tuple[int, int], Link] = {}
    client: tuple[Link, ...] = ()

    def link(self, source: int, target: int) -> Link:
        """The link between two executors, or CLIENT and one; through the client's where none was measured.

        Raises:
            KeyError: nothing is known of it.
        """
        for client, executor in ((source, target), (target, source)):
            if client == CLIENT and executor < len(self.client):
                return self.client[executor]
        known = self.links.get((source, target)) or self.links.get((target, source))
        if known is not None:
            return known
        ends = [self.client[end] for end in (source, target) if end < len(self.client)]
        if not ends:
            raise KeyError(f"no link between executors {source} and {target} is known")
        return Link(
            min(end.bytes_per_s for end in ends),
            max(end.latency_s for end in ends),
            max(end.message_s for end in ends),
            max(BORROWED_SIGMA, *(end.sigma for end in ends)),
        )
