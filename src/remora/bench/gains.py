"""What moving state costs and what leaving it where it is gains: a cost model of few terms, and where gains begin.

Pure. The terms are measured apart from what they predict: what a step costs beside bytes and kernels by a twin, the
same program over a small state; the link by raw sockets; the kernels by local PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Twin:
    """A step of an arm over a small state. nbytes: what its busiest link carries. kernel_s: of local PyTorch for it.

    client_s: the client's processor time. busy_s: the executors', by their own clocks. messages: that told them, as the
    client goes on with the next one.
    """

    seconds: float
    nbytes: float
    kernel_s: float
    client_s: float = 0.0
    busy_s: float = 0.0
    messages: float = 1.0


@dataclass(frozen=True)
class Wire:
    """bytes_per_s: what a raw socket reaches, 0 for no limit. burst_nbytes: passes at once after a pause, which the
    shaper makes up for in `burst_nbytes / bytes_per_s`."""

    bytes_per_s: float
    burst_nbytes: float = 0.0

    def seconds(self, nbytes: float, pause_s: float) -> float:
        """Of one message, after a pause in which the link carried nothing."""
        if not self.bytes_per_s:
            return 0.0
        saved = min(self.burst_nbytes, nbytes, pause_s * self.bytes_per_s)
        return (nbytes - saved) / self.bytes_per_s


def waiting_s(twin: Twin, nbytes: float, kernel_s: float, wire: Wire) -> float:
    """A step that waits for its bytes, and for its kernels after them; nothing overlaps."""
    own_s = max(twin.seconds - twin.kernel_s - wire.seconds(twin.nbytes, twin.seconds), 0.0)
    return own_s + wire.seconds(nbytes, own_s + kernel_s) + kernel_s


def pipelined_s(twin: Twin, kernel_s: float, steps: int) -> float:
    """A step of `steps` that are waited for together. Client and executor work at once, so the slower one's part counts
    for each; the other one's part for one message: the executor begins behind the first, and ends behind the last."""
    messages = max(1.0, twin.messages * steps)

    def both_s(kernel_s: float) -> float:
        busy_s = twin.busy_s - twin.kernel_s + kernel_s
        return max(twin.client_s, busy_s) + min(twin.client_s, busy_s) / messages

    own_s = max(twin.seconds - both_s(twin.kernel_s), 0.0)
    return own_s + both_s(kernel_s)


def saved(moving_s: float, staying_s: float) -> float:
    """The share of the time that is gone; below 0: it takes longer."""
    return 1.0 - staying_s / moving_s


def smallest(shares: Mapping[int, float], share: float) -> int | None:
    """The smallest size from which on every share is at least that; None: the largest size does not reach it.

    shares: by size.
    """
    found = None
    for size in sorted(shares, reverse=True):
        if shares[size] < share:
            break
        found = size
    return found
