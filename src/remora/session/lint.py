"""The sync linter: what made the program wait for its executor, by source line.

A session is watched by replacing the methods of its link that block, on that one object, so that nothing is paid
for where nobody asked. Why the program waits is read from the functions on the stack.
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
    "synchronize": "only timing needs it: results wait for themselves",
    "question": "the executor's memory and device are worth asking for rarely",
    "upload": "move what does not change once, before the loop",
}
_BLOCKING = ("wait", "wait_until", "persist")  # methods of session/link.py
# What a function of Remora's on the stack says about a wait; the outermost one decides: print reads a number too.
_MEANS = {
    "_item": "number",
    "_equal": "compare",
    "described": "shape",
    "store": "upload",
    "barrier": "synchronize",
    "passed": "synchronize",
    "synchronize": "synchronize",
    "memory": "question",
    "facts": "question",
    "__repr__": "print",
    "__format__": "print",
    "__reduce__": "save",
}
_SAVERS = {("torch", "serialization.py"), ("safetensors", "torch.py")}
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
        for name in _BLOCKING:
            if hasattr(session.link, name):
                setattr(session.link, name, self._counted(session, getattr(session.link, name)))

    def _measure(self, session: Session) -> float:
        times_s = []
        before = session.link.round_trips
        for _ in range(ROUND_TRIPS):
            started_s = self._clock()
            session.barrier()
            times_s.append(self._clock() - started_s)
        session.link.round_trips = before  # not the program's
        return statistics.median(times_s[1:])

    def _counted(self, session: Session, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            before = session.link.round_trips + session.uploads.round_trips
            started_s = self._clock()
            try:
                return method(*args, **kwargs)
            finally:
                waited_s = self._clock() - started_s
                spent = session.link.round_trips + session.uploads.round_trips - before
                caller = sys._getframe(1)
                rest = (
                    caller.f_code.co_name == "_fetched"
                )  # of a large value, whose reply was waited for before
                if spent or rest:
                    self._add(place(caller), not rest, spent or 1, waited_s)

        return counted

    def _add(self, where: Place, calls: int, round_trips: int, waited_s: float) -> None:
        with self._lock:
            blocked = self.found.setdefault(where, Blocked())
            blocked.calls += calls
            blocked.round_trips += round_trips
            blocked.waited_s += waited_s

    def costs(self) -> list[tuple[Place, Blocked, float]]:
        """Each place with the seconds that its round trips cost, dearest first."""
        rtt_s = self.round_trip_s or 0.0
        rows = [(where, blocked, blocked.round_trips * rtt_s) for where, blocked in self.found.items()]
        return sorted(rows, key=lambda row: (-row[2], -row[1].waited_s, row[0]))


def place(frame: FrameType) -> Place:
    """Where the program waits and why; `frame` is the caller of a blocking method."""
    user = user_frame(frame)
    assert user is not None
    outside: FrameType | None = frame  # the innermost frame that is neither Remora's nor PyTorch's dispatch
    kind, op = "copy", ""
    while outside is not None and outside is not user and _passed_through(outside.f_code):
        name = outside.f_code.co_name
        kind = _MEANS.get(name, kind)
        if kind == "shape" and name == "record" and not op:
            op = str(outside.f_locals.get("func", ""))
        outside = outside.f_back
    if outside is None:
        outside = user
    via = "" if outside is user else f"{_short(outside.f_code.co_filename)}:{outside.f_lineno}"
    if kind == "number" and _branches(outside):
        kind = "branch"
    if kind == "copy" and Path(outside.f_code.co_filename).parts[-2:] in _SAVERS:
        kind = "save"
    return Place(user.f_code.co_filename, user.f_lineno, kind, via, op)


def _passed_through(code: CodeType) -> bool:
    path = Path(code.co_filename)
    return path.parts[-2:] in _DISPATCH or _PACKAGE in path.parents


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
