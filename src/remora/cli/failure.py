"""How a command ends that could not do its work: one line on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from remora.errors import RemoraError


def fail(command: str, message: str, exit_code: int = 1) -> typer.Exit:
    """Prints the line and returns the exit to raise."""
    print(f"remora {command}: {' '.join(message.split())}", file=sys.stderr)
    return typer.Exit(exit_code)


@contextmanager
def failures_in_one_line(command: str) -> Iterator[None]:
    """Turns what Remora raises on purpose into that line and exit code 1; bugs keep their traceback."""
    try:
        yield
    except RemoraError as error:
        raise fail(command, str(error)) from None
