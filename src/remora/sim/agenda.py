"""What happens when: events in the order of their time, and of their announcement where times are equal."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Agenda:
    """A clock that jumps from event to event. The same announcements give the same order, always."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0  # that have happened
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = itertools.count()

    def at(self, time_s: float, act: Callable[..., None], *given: Any) -> None:
        """`act(*given)` happens then; now, if that has passed."""
        heapq.heappush(self._heap, (max(time_s, self.now_s), next(self._serial), act, given))

    def after(self, seconds: float, act: Callable[..., None], *given: Any) -> None:
        self.at(self.now_s + seconds, act, *given)

    @property
    def waiting(self) -> int:
        """Events that are announced and have not happened."""
        return len(self._heap)

    def run(self, until_s: float = float("inf")) -> None:
        """Lets everything happen up to a time."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            self.now_s, _, act, given = heapq.heappop(heap)
            self.events += 1
            act(*given)
