"""Checkpoints that are mapped, not read: their pages leave this process's memory behind the upload.

`from_pretrained` holds all files of a checkpoint open until the last weight is loaded. Each weight is read once, to be
sent; without this the whole model would be resident in a client that keeps none of it.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import sys
from functools import cache
from typing import Any

LEAST_NBYTES = 1 << 20  # smaller weights are not worth the look
KEPT_NBYTES = 64 << 20  # stay, so that a small model's file stays in the page cache
# Writes nothing off that is not on the disk: pages that the program changed stay as they are.
_MADV_PAGEOUT = 21

_sent: list[tuple[int, int]] = []  # address and size of what has gone and may leave
_ranges: list[tuple[int, int]] = []  # of mapped files, sorted; as last seen


def has_gone(address: int, nbytes: int) -> None:
    """Tells that an upload has read these bytes."""
    if _pageout() is None or nbytes < LEAST_NBYTES or not _of_file(address, nbytes):
        return
    _sent.append((address, nbytes))
    if sum(size for _, size in _sent) > KEPT_NBYTES:
        sent = _sent[:]
        _sent.clear()
        for start, size in sent:
            if _of_file(start, size):  # still: else it is somebody's memory by now
                _leave(start, size)


def _leave(start: int, nbytes: int) -> None:
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = (start + nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if whole > 0:
        # a refusal costs only memory
        _pageout()(ctypes.c_void_p(first), ctypes.c_size_t(whole), _MADV_PAGEOUT)


def _of_file(start: int, nbytes: int) -> bool:
    """Whether the bytes lie in a mapped file, looking anew where that is not known."""
    global _ranges
    if not _inside(start, nbytes):
        _ranges = _mapped_files()
    return _inside(start, nbytes)


def _inside(start: int, nbytes: int) -> bool:
    at = bisect.bisect_right(_ranges, (start, sys.maxsize)) - 1
    return at >= 0 and start + nbytes <= _ranges[at][1]


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges of files on a disk that this process maps for itself; files in memory are left alone."""
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, mode, _, _, inode, *path = line.split(maxsplit=5)
            if inode != "0" and mode[3] == "p" and path and not path[0].startswith(("/dev/", "/memfd:")):
                start, _, end = span.partition("-")
                found.append((int(start, 16), int(end, 16)))
    return sorted(found)


@cache
def _pageout() -> Any:
    """`madvise` of the C library, or None where there is none of the kind."""
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
