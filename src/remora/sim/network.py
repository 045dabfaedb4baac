"""Links that are shared: every end has a port, and a port's rate is shared out equally among what passes it.

A transfer goes at the smallest of its shares of the two ports that it passes and of its own cap, and arrives a latency
after its last byte left. What fits one packet does not wait for large transfers, as packets of several connections
take turns, but within a channel nothing overtakes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from remora.sim.agenda import Agenda

PACKET_NBYTES = 1448  # of payload, in an Ethernet frame of 1500
_ROUNDING_NBYTES = 1e-6


class Port:
    """One direction of an end. bytes_per_s: 0 for no limit. busy_s: that something large passed it."""

    __slots__ = ("busy_s", "bytes_per_s", "nbytes", "passing", "since_s")

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.passing: dict[Transfer, None] = {}
        self.nbytes = 0
        self.busy_s = 0.0
        self.since_s = 0.0

    def share(self) -> float:
        return self.bytes_per_s / len(self.passing) if self.bytes_per_s else float("inf")


class Transfer:
    """Bytes on their way through two ports."""

    __slots__ = ("arrived", "at_s", "given", "left", "rate", "route", "turn")

    def __init__(
        self, route: Route, nbytes: float, arrived: Callable[..., None], given: tuple[Any, ...]
    ) -> None:
        self.route, self.left, self.arrived, self.given = route, nbytes, arrived, given
        self.rate, self.at_s, self.turn = 0.0, 0.0, 0


class Route:
    """From one end to another. bytes_per_s: a cap of its own."""

    __slots__ = ("bytes_per_s", "latency_s", "source", "target")

    def __init__(self, source: Port, target: Port, latency_s: float, bytes_per_s: float) -> None:
        self.source, self.target = source, target
        self.latency_s, self.bytes_per_s = latency_s, bytes_per_s


class Network:
    """All transfers of a simulation."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda

    def send(self, route: Route, nbytes: int, arrived: Callable[..., None], *given: Any) -> None:
        """`arrived(*given)` happens when all bytes are there."""
        self.count(route, nbytes)
        if nbytes <= PACKET_NBYTES:
            self._agenda.after(route.latency_s + nbytes / route.bytes_per_s, arrived, *given)
            return
        transfer = Transfer(route, float(nbytes), arrived, given)
        transfer.at_s = self._agenda.now_s
        for port in (route.source, route.target):
            if not port.passing:
                port.since_s = self._agenda.now_s
            port.passing[transfer] = None
        self._share(route)

    def count(self, route: Route, nbytes: int) -> None:
        route.source.nbytes += nbytes
        route.target.nbytes += nbytes

    def _share(self, changed: Route) -> None:
        """What passes a port where something began or ended has another rate from now on."""
        now_s = self._agenda.now_s
        for transfer in {**changed.source.passing, **changed.target.passing}:
            route = transfer.route
            rate = min(route.bytes_per_s, route.source.share(), route.target.share())
            if rate == transfer.rate:
                continue
            transfer.left -= transfer.rate * (now_s - transfer.at_s)
            transfer.rate, transfer.at_s = rate, now_s
            transfer.turn += 1
            self._agenda.after(max(0.0, transfer.left) / rate, self._ends, transfer, transfer.turn)

    def _ends(self, transfer: Transfer, turn: int) -> None:
        if turn != transfer.turn:
            return  # its rate has changed since
        route, now_s = transfer.route, self._agenda.now_s
        for port in (route.source, route.target):
            del port.passing[transfer]
            if not port.passing:
                port.busy_s += now_s - port.since_s
        self._share(route)
        self._agenda.after(route.latency_s, transfer.arrived, *transfer.given)


class Channel:
    """Frames in order, one after the other, over a route."""

    __slots__ = ("_agenda", "_free_s", "_network", "_queue", "_sending", "route")

    def __init__(self, agenda: Agenda, network: Network, route: Route) -> None:
        self.route, self._agenda, self._network = route, agenda, network
        self._queue: deque[tuple[int, Callable[..., None], tuple[Any, ...]]] | None = None
        self._sending = False
        self._free_s = 0.0  # when the last small frame has left

    def send(self, nbytes: int, arrived: Callable[..., None], *given: Any) -> None:
        if self._sending:
            if self._queue is None:
                self._queue = deque()
            self._queue.append((nbytes, arrived, given))
            return
        self._start(nbytes, arrived, given)

    def _start(self, nbytes: int, arrived: Callable[..., None], given: tuple[Any, ...]) -> None:
        route = self.route
        if nbytes <= PACKET_NBYTES:
            self._free_s = max(self._free_s, self._agenda.now_s) + nbytes / route.bytes_per_s
            self._network.count(route, nbytes)
            self._agenda.at(self._free_s + route.latency_s, arrived, *given)
            return
        self._sending = True
        # the latency is waited out behind the transfer, and the next frame leaves meanwhile
        straight = Route(route.source, route.target, 0.0, route.bytes_per_s)
        self._network.send(straight, nbytes, self._left, arrived, given)

    def _left(self, arrived: Callable[..., None], given: tuple[Any, ...]) -> None:
        self._free_s = max(self._free_s, self._agenda.now_s)
        self._agenda.at(self._free_s + self.route.latency_s, arrived, *given)
        self._sending = False
        while self._queue and not self._sending:
            self._start(*self._queue.popleft())
