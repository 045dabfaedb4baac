"""Values that come late, as from a GPU that still computes them: a stand-in for worker/reading.py."""

from __future__ import annotations

from collections.abc import Callable


class LateReading:
    """there: whether the device is done with it, asked each time. asked: until when it was, of all that share it."""

    def __init__(self, tensors, bounds, there: Callable[[], bool], asked: list[float] | None = None) -> None:
        self._copies = [(tensor.clone().contiguous(), tensor.stride()) for tensor in tensors]
        self._bounds, self._flag = bounds, bounds.state() if bounds is not None else None
        self._there, self._asked = there, [] if asked is None else asked

    def done(self, until):
        self._asked.append(until)
        return self._there()

    def copies(self):
        if self._bounds is not None:
            self._bounds.judge(self._flag)
        return self._copies
