"""From a `Failed` message to the exception that the user sees."""

from __future__ import annotations

import re
from collections.abc import Iterable

from remora.capture.recorder import CapturedTemplate
from remora.errors import (
    ExecutorError,
    ExecutorIndexError,
    ExecutorTypeError,
    ExecutorValueError,
    OutOfMemory,
    UnsupportedOp,
)
from remora.wire.messages import Failed

_TYPES: dict[str, type[ExecutorError]] = {
    "index": ExecutorIndexError,
    "value": ExecutorValueError,
    "type": ExecutorTypeError,
    "memory": OutOfMemory,
    "unsupported": UnsupportedOp,
}


def error_from(failed: Failed, captured: CapturedTemplate | None, address: str) -> ExecutorError:
    """Names op, shapes, module path and the user's line, as far as they are known."""
    lines = [failed.message]
    if captured is not None:
        lines.append(f"  in {row_text(captured, failed.row)}")
    elif failed.op:
        lines.append(f"  in {failed.op}")
    if failed.shapes:
        lines.append(f"  with {failed.shapes}")
    lines.append(f"  on executor {address}")
    if captured is not None:
        lines.append("  What came before it is kept; what was recorded after it did not run.")
    return _TYPES.get(failed.kind, ExecutorError)("\n".join(lines))


def row_text(captured: CapturedTemplate, row: int) -> str:
    """The op of a row, the user's file and line, and the module path."""
    if row >= len(captured.template.nodes):
        return f"row {row}"
    where = captured.where[row]
    op = captured.template.nodes[row].op
    return f"{op}, called at {where}" if where is not None else op


_INDEXED = re.compile(
    r"aten\.\w*(embedding|index|gather|scatter|take|nll_loss|cross_entropy|one_hot|multinomial)"
)
_MAX_SUSPECTS = 3


def suspects_text(sent: Iterable[tuple[CapturedTemplate, int | None]]) -> str:
    """What may really have broken a device that reports late: the last rows that follow indices, newest first.

    sent: templates since the last sync, with the last row that counts (None: all).
    """
    rows = [
        row_text(captured, row)
        for captured, last in sent
        for row, node in enumerate(captured.template.nodes)
        if (last is None or row <= last) and _INDEXED.match(node.op)
    ]
    if not rows:
        return ""
    named = " or ".join(dict.fromkeys(reversed(rows[-_MAX_SUSPECTS:])))
    return f"; a GPU reports late, and what reads indices before it is {named}"
