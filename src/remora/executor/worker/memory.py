"""How much memory the device has, a limit on what the process may allocate on it, and mapped blobs."""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

# Room for what PyTorch keeps beside tensors (threads, code, caches), so that the limit means tensors.
OWN_NBYTES = 512 << 20


def device_memory_nbytes(device: torch.device) -> int:
    """What the device has: all of a GPU, 80 % of a host's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 8 // 10


def limit_allocator(device: torch.device, memory_nbytes: int) -> None:
    """Makes an allocation beyond the limit fail where it is asked for: values, KV cache and workspace alike."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_nbytes / total), device)
    elif sys.platform == "linux":
        import resource

        limit = _data_nbytes() + OWN_NBYTES + memory_nbytes
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


class Maps:
    """Stored blobs, mapped copy-on-write. A map counts as private memory of the process; the blob's file is
    counted once (by the front), so for every further map of it the limit is raised while that map lives."""

    def __init__(self) -> None:
        self._living: Counter[str] = Counter()

    def map(self, path: str, nbytes: int) -> mmap.mmap:
        """Raises OSError: there is no memory, or no such file."""
        if self._living[path]:
            _raise_limit(nbytes)
        self._living[path] += 1
        try:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_COPY)
        except BaseException:
            self._ended(path, nbytes)
            raise
        weakref.finalize(mapped, self._ended, path, nbytes)
        return mapped

    def share(self, path: str, nbytes: int, ended: Callable[[], object]) -> mmap.mmap:
        """The start of a file that is nobody else's now, as memory to write to; `ended`: nothing reads it any more.

        Shared memory does not count for the process's limit, so that is lowered by it.

        Raises:
            OSError: there is no memory, or no such file.
        """
        with open(path, "rb+") as file:
            mapped = mmap.mmap(file.fileno(), nbytes)
        _raise_limit(-nbytes)
        weakref.finalize(mapped, _unshared, nbytes, ended)
        return mapped

    def _ended(self, path: str, nbytes: int) -> None:
        self._living[path] -= 1
        if self._living[path]:
            _raise_limit(-nbytes)
        else:
            del self._living[path]


def _unshared(nbytes: int, ended: Callable[[], object]) -> None:
    _raise_limit(nbytes)
    ended()


def _raise_limit(nbytes: int) -> None:
    if sys.platform != "linux":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft >= 0:
        limit = max(0, soft + nbytes)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


def _data_nbytes() -> int:
    """Private writable memory of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0
