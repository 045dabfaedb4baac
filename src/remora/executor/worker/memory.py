"""How much memory the device has, and a limit on what the process may allocate on it."""

from __future__ import annotations

import os
import sys
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


def _data_nbytes() -> int:
    """Private writable memory of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0
