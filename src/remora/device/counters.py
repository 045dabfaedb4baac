"""What the device counts for `remora.stats()`; without torch, since the session reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """eager_frames: frames under torch.compile that ran under capture instead. whole_calls: calls of modules that
    were appended as a whole. route: how the last call of a module was captured: `lazy`, op by op; `warming`, so, while
    its guards are being made; `guarded`, as a whole."""

    eager_frames: int = 0
    whole_calls: int = 0
    route: str = "lazy"


counters = Counters()
