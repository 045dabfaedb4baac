"""A worker on a CPU whose memory can be lent as a GPU's can: to a process of this host, which copies out of it.

What the file `fault` in the executor's folder says goes wrong: export, full (for now), open, slow (to open), die (at
opening).
"""

from __future__ import annotations

import mmap
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from remora.executor.worker import __main__ as worker
from remora.executor.worker import exports, outbox
from remora.executor.worker.exports import CannotExport, CannotOpen, Export

FOLDER = Path(sys.argv[sys.argv.index("--folder") + 1])


def fault() -> str:
    try:
        return (FOLDER.parent / "fault").read_text()
    except FileNotFoundError:
        return ""


class SharedMemory:
    kind = "shared"

    def make(self, nbytes: int) -> Export:
        wrong = fault()
        if wrong in ("export", "full"):
            raise CannotExport(f"a fault of the test: {wrong}", lasting=wrong == "export")
        path = FOLDER / f"lent-{secrets.token_hex(8)}"
        with open(path, "xb+") as file:
            file.truncate(nbytes)
            mapped = mmap.mmap(file.fileno(), nbytes)
        return Export(torch.frombuffer(mapped, dtype=torch.uint8), os.fsencode(path))

    def settle(self) -> None:
        pass

    def free(self, export: Export) -> None:
        os.unlink(export.handle)

    def read(self, handle: bytes, targets: Sequence[tuple[int, torch.Tensor]]) -> None:
        wrong = fault()
        if wrong == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if wrong == "slow":
            time.sleep(1.5)
        try:
            if wrong == "open":
                raise OSError("a fault of the test: open")
            with open(handle, "rb") as file:
                memory = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
        except (OSError, ValueError) as error:
            raise CannotOpen(str(error)) from None
        for at, target in targets:
            target.copy_(memory[at : at + target.numel()])


worker.SPARE_S = outbox.SPARE_S = 0.5
exports.DOUBT_S = 1.0
exports.memory_of = lambda device: SharedMemory()
worker.main()
