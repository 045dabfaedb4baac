"""A worker on a CPU whose device breaks as a GPU does: a bad index is reported one row late, and is fatal."""

from __future__ import annotations

from typing import Any

from remora.executor.hop import Fatal
from remora.executor.worker import __main__ as worker
from remora.executor.worker import program, running, session

ASSERT = "CUDA error: device-side assert triggered"


def run(compiled: program.Program, *rest: Any) -> program.Registers:
    try:
        return program.run(compiled, *rest)
    except program.Failure as failure:
        if not isinstance(failure.cause, IndexError):
            raise
        late = min(failure.row + 1, compiled.instructions[-1].row)
        raise program.Failure(
            late, RuntimeError(f"{ASSERT}\nand more lines"), failure.registers, "float32[1, 2]"
        ) from None


running.run = run
session.is_fatal = lambda error: ASSERT in str(error)
worker.Fatal = lambda *words: Fatal(*words[:-1], late=True)
worker.main()
