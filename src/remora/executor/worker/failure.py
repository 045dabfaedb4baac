"""From an exception on the device to the message that tells the client."""

from __future__ import annotations

import errno
import re

import torch

from remora.errors import ProtocolError, UnsupportedOp

_CPU_ASKED = re.compile(r"you tried to allocate (\d+) bytes")
_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (torch.OutOfMemoryError, "memory"),
    (MemoryError, "memory"),
    (UnsupportedOp, "unsupported"),
    (ProtocolError, "protocol"),
    (IndexError, "index"),
    (ValueError, "value"),
    (TypeError, "type"),
    (NotImplementedError, "unsupported"),
)


class MemoryLimit(MemoryError):
    """The session would hold more than was granted."""


class OutOfRange(IndexError):
    """An index was out of range, and what was computed with it is worthless: see bounds.py."""


class DeviceBroken(Exception):
    """The device context is broken; the worker tells the front what it was doing, and ends."""

    def __init__(self, segment: int, row: int, op: str, shapes: str, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.segment, self.row, self.op, self.shapes = segment, row, op, shapes


def kind_of(error: BaseException) -> str:
    """The `kind` of a Failed message."""
    if "DefaultCPUAllocator" in str(error) or "Storage size calculation overflowed" in str(error):
        return "memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.ENOSPC):
        return "memory"
    return next((kind for type_, kind in _KINDS if isinstance(error, type_)), "error")


def is_fatal(error: BaseException) -> bool:
    """Whether the device context is broken: nothing that runs on it can be trusted any more."""
    if isinstance(error, OutOfRange):
        return True
    if not isinstance(error, torch.AcceleratorError):  # of other errors a client may choose the text
        return False
    text = str(error)
    return (
        "device-side assert" in text or "CUDA error: an illegal" in text or "CUDA error: unspecified" in text
    )


def message_of(error: BaseException, held: str) -> str:
    """What went wrong; for memory also what was asked and what is held by whom."""
    text = str(error).strip()
    if kind_of(error) != "memory":
        return text
    asked = _CPU_ASKED.search(text)
    if asked:
        text = f"asked for {int(asked[1]):,} bytes"
    return f"the executor is out of memory: {text}. {held}"
