"""What the device counts for `remora.stats()`; without torch, since the session reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """eager_frames: frames under torch.compile that ran under capture instead."""

    eager_frames: int = 0


counters = Counters()
