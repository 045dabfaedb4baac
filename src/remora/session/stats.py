"""Counters of a session, as a snapshot that can be subtracted."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Stats:
    """bytes_sent, bytes_received: at the socket, framing included. round_trips: times the client blocked on a
    reply. segments, templates, ops: captured. weights_bytes: sent as bulk. reconnects: cut links resumed.
    eager_frames: frames under torch.compile that ran under capture instead, in the whole process. plans: made, one
    for a template, a size and a whereabouts of its inputs. peer_bytes: from executor to executor; peer_messages: in
    how many pushes. speculated: programs (up to a sync each) that executors ran before they were told to. confirmed:
    of them, those that the program then asked for. wasted: those that were undone. depth: programs that an executor
    may be ahead by now; of several, the most. whole_calls: calls of modules that were captured as a whole.
    capture_route: how the last call was: `lazy`, `warming` or `guarded`. exact: whether only kernels
    run that PyTorch would choose. A difference keeps the later depth, route and exact.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    round_trips: int = 0
    segments: int = 0
    templates: int = 0
    ops: int = 0
    weights_bytes: int = 0
    reconnects: int = 0
    eager_frames: int = 0
    plans: int = 0
    peer_bytes: int = 0
    peer_messages: int = 0
    speculated: int = 0
    confirmed: int = 0
    wasted: int = 0
    depth: int = 0
    whole_calls: int = 0
    capture_route: str = "lazy"
    exact: bool = True

    def __sub__(self, earlier: Stats) -> Stats:
        counts = {name: getattr(self, name) - getattr(earlier, name) for name in _COUNTED}
        return replace(self, **counts)

    def __add__(self, other: Stats) -> Stats:
        counts = {name: getattr(self, name) + getattr(other, name) for name in _COUNTED}
        return replace(self, **counts, depth=max(self.depth, other.depth), exact=self.exact and other.exact)


_COUNTED = [field.name for field in fields(Stats) if field.name not in ("depth", "capture_route", "exact")]
