"""The sync linter: what made the program wait for its executor, by source line.

A session is watched by replacing the four methods that block on that one session, so that nothing is paid for
where nobody asked.
"""

from __future__ import annotations

import dis
import functools
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from remora.capture.provenance import user_frame

if TYPE_CHECKING:
    from remora.session.session import Session

ROUND_TRIPS = 7  # measured when a session opens; the first is for warming up

HINTS = {
    "branch": "decide on the device (torch.where), or test only every so many steps",
    "number": "keep the number on the device (loss.detach()); read it every so many steps",
    "copy": "copy later, and in one piece: one .cpu() of a torch.cat or torch.stack",
    "compare": "compare on the device with ==, and read one result for many",
    "print": "print every so many steps",
    "save": "save rarely; .cpu() the state once and save that",
    "shape": "the result's size depends on data: use a mask, torch.where or topk, whose sizes do not",
    "generator": "reading or setting the generator waits: checkpoint(preserve_rng_state=False) if nothing is random",
    "synchronize": "only timing needs it: results wait for themselves",
    "upload": "move what does not change once, before the loop",
}
# Functions through which a value is read, innermost first; what none of them names is a copy to the CPU.
_READERS = {
    ("device/tensor.py", "__repr__"): "print",
    ("device/tensor.py", "__format__"): "print",
    ("device/tensor.py", "__reduce_ex__"): "save",
    ("device/special.py", "_equal"): "compare",
    ("device/special.py", "_item"): "number",
}
_DISPATCH = {
    ("torch", "_ops.py"),
    ("torch", "_tensor.py"),
    ("torch", "overrides.py"),
}  # between a call and Remora
_PACKAGE = Path(__file__).resolve().parents[1]


class Place(NamedTuple):
    """file, line: the user's own. kind: a key of HINTS. via: the library's line that waited, '' if it was the
    user's own. op: of a result whose shape depends on data, else ''."""

    file: str
    line: int
    kind: str
    via: str
    op: str


@dataclass
class Blocked:
    """calls: that waited; round_trips: of them all; waited_s: measured, the executor's work included."""

    calls: int = 0
    round_trips: int = 0
    waited_s: float = 0.0


class Lint:
    """Counts the waits of every session that it watches."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.found: dict[Place, Blocked] = {}
        self.round_trip_s: float | None = None
        self._clock = clock
        self._lock = threading.Lock()

    def watch(self, session: Session) -> None:
        """Measures the round trip, and counts from here on."""
        self.round_trip_s = self._measure(session)
        for name in ("fetch", "rng_state", "barrier", "store"):
            setattr(session, name, self._counted(session, name, getattr(session, name)))

    def _measure(self, session: Session) -> float:
        times_s = []
        before = session.link.round_trips
        for _ in range(ROUND_TRIPS):
            started_s = self._clock()
            session.barrier()
            times_s.append(self._clock() - started_s)
        session.link.round_trips = before  # not the program's
        return statistics.median(times_s[1:])

    def _counted(self, session: Session, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            shape = name == "fetch" and (kwargs.get("describe") or len(args) > 1)
            node = session.recorder.step.node if shape else None
            before = session.link.round_trips + session.uploads.round_trips
            started_s = self._clock()
            try:
                return method(*args, **kwargs)
            finally:
                waited_s = self._clock() - started_s
                spent = session.link.round_trips + session.uploads.round_trips - before
                if spent:
                    where = place(sys._getframe(1), name, node.op if node is not None else "")
                    self._add(where, spent, waited_s)

        return counted

    def _add(self, where: Place, round_trips: int, waited_s: float) -> None:
        with self._lock:
            blocked = self.found.setdefault(where, Blocked())
            blocked.calls += 1
            blocked.round_trips += round_trips
            blocked.waited_s += waited_s

    def costs(self) -> list[tuple[Place, Blocked, float]]:
        """Each place with the seconds that its round trips cost, dearest first."""
        rtt_s = self.round_trip_s or 0.0
        rows = [(where, blocked, blocked.round_trips * rtt_s) for where, blocked in self.found.items()]
        return sorted(rows, key=lambda row: (-row[2], -row[1].waited_s, row[0]))


def place(frame: FrameType, method: str, op: str) -> Place:
    """Where the program waits; `frame` is the caller of a session's blocking `method`."""
    user = user_frame(frame)
    assert user is not None
    outside: FrameType | None = frame  # the innermost frame that is neither Remora's nor PyTorch's dispatch
    names: list[tuple[str, str]] = []
    while outside is not None and outside is not user and _passed_through(outside.f_code):
        names.append(_name(outside.f_code))
        outside = outside.f_back
    if outside is None:
        outside = user
    via = "" if outside is user else f"{_short(outside.f_code.co_filename)}:{outside.f_lineno}"
    kind = _kind(method, op, names, outside)
    return Place(user.f_code.co_filename, user.f_lineno, kind, via, op)


def _kind(method: str, op: str, names: list[tuple[str, str]], caller: FrameType) -> str:
    if method != "fetch":
        return {"rng_state": "generator", "barrier": "synchronize", "store": "upload"}[method]
    if op:
        return "shape"
    kinds = [_READERS[name] for name in names if name in _READERS]
    if not kinds:
        return "copy"
    kind = kinds[-1]  # the outermost: print reads an item too
    return "branch" if kind == "number" and _branches(caller) else kind


def _passed_through(code: CodeType) -> bool:
    path = Path(code.co_filename)
    return path.parts[-2:] in _DISPATCH or _PACKAGE in path.parents


def _name(code: CodeType) -> tuple[str, str]:
    path = Path(code.co_filename)
    return "/".join(path.parts[-2:]), code.co_name


def _short(filename: str) -> str:
    """Below site-packages, as one reads an import."""
    parts = Path(filename).parts
    for root in ("site-packages", "dist-packages"):
        if root in parts:
            return "/".join(parts[parts.index(root) + 1 :])
    return "/".join(parts[-2:])


def _branches(frame: FrameType) -> bool:
    """Whether the frame waits in a test (`if x:`, `while`, `not x`, `and`) and not in a call."""
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset == frame.f_lasti:
            return instruction.opname.startswith(("POP_JUMP", "JUMP_IF", "UNARY_NOT", "TO_BOOL"))
    return False
