"""How the worker process is set up, and what it tells of itself when it is."""

from __future__ import annotations

import gc
import os

import torch

from remora.executor.hop import WorkerReady
from remora.ops.permission import op_table, table_digest
from remora.ops.schema import resolve


def choose_device(text: str) -> torch.device:
    """`auto` is the first GPU if there is one."""
    if text == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(text)


def prefer_throughput() -> None:
    """Lets the program that feeds this worker finish what it is saying before the worker takes its core, and
    keeps the garbage collector, which has nothing to find in the loop, out of it."""
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def ready(device: torch.device, memory_nbytes: int, lends: str = "") -> WorkerReady:
    """What this worker is and can run. lends: the kind of its device's memory, if it can lend that."""
    ops = op_table()
    schemas = {name: str(resolve(name)._schema) for name in ops}
    version, digest = str(torch.__version__), table_digest(ops)
    return WorkerReady(version, str(device), memory_nbytes, digest, ops, schemas, lends)
