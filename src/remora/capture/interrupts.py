"""Ctrl-C, held off while something must happen wholly or not at all."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import threading
from _thread import get_ident
from types import FrameType
from typing import Any

# The functions that Python's `signal` wraps: its own make enumerations of what they give, at twenty times the price.
_getsignal, _signal_is, _SIGINT = _signal.getsignal, _signal.signal, _signal.SIGINT


class Uninterrupted:
    """`with uninterrupted:` a KeyboardInterrupt waits until the block ends. Reentrant.

    For short blocks that wait for nothing. Python raises KeyboardInterrupt in the main thread only, so in
    other threads this does nothing; nor does it where the program has no handler of its own in Python.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._came: tuple[int, FrameType | None] | None = None
        self._handler: Any = None
        self._note = self._take_note  # one object, to be compared by identity
        self._main = threading.main_thread().ident

    def __enter__(self) -> None:
        if get_ident() != self._main:
            return
        handler = _getsignal(_SIGINT)
        if handler is self._note:
            self._depth += 1
        elif callable(handler):
            self._handler, self._depth, self._came = handler, 1, None
            _signal_is(_SIGINT, self._note)  # an interrupt before this one is raised by it

    def __exit__(self, *_: object) -> None:
        if get_ident() != self._main or not self._depth:
            return
        self._depth -= 1
        if self._depth:
            return
        _signal_is(_SIGINT, self._handler)
        if self._came is not None:
            number, frame = self._came
            self._handler(number, frame)

    def forked(self) -> None:
        """In a child process: if it was another thread that forked, the block's end is not here."""
        self._main = threading.main_thread().ident
        if get_ident() == self._main and _getsignal(_SIGINT) is self._note:
            _signal_is(_SIGINT, self._handler)
        self._depth, self._came = 0, None

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self._came = (number, frame)


uninterrupted = Uninterrupted()
