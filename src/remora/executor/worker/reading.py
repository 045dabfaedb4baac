"""Values that a client asked for, read while the device still computes them: nobody waits, what comes next is begun."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from remora.executor.worker.bounds import Bounds
from remora.executor.worker.program import restride

Copy = tuple[torch.Tensor, tuple[int, ...]]
"""A value in C order on the host, and the strides that it has on the device."""


class Reading:
    """Values as they are at this place of the stream, on their way to the host."""

    def __init__(self, tensors: Sequence[torch.Tensor], bounds: Bounds | None) -> None:
        self._bounds = bounds
        self._flag = bounds.on_its_way() if bounds is not None else None
        self._copies = [
            (
                restride(tensor.detach().resolve_conj().resolve_neg(), ()).to("cpu", non_blocking=True),
                tensor.stride(),
            )
            for tensor in tensors
        ]
        self._copied = torch.cuda.Event()
        self._copied.record()

    def done(self, until: float) -> bool:
        """Whether `copies` would not wait; if it would, asked again until then, by `time.perf_counter`."""
        while not self._copied.query():
            if time.perf_counter() >= until:
                return False
        return True

    def copies(self) -> list[Copy]:
        """Waits for the device. Raises OutOfRange, as `Bounds.check` does."""
        self._copied.synchronize()
        if self._bounds is not None:
            self._bounds.judge(self._flag)
        return self._copies
