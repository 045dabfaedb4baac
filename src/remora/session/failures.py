"""From a `Failed` message to the exception that the user sees."""

from __future__ import annotations

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
    kind = _TYPES.get(failed.kind, ExecutorError)
    if captured is None or failed.row >= len(captured.template.nodes):
        return kind(f"{failed.message}\n  on executor {address}")
    node = captured.template.nodes[failed.row]
    where = captured.where[failed.row]
    lines = [f"{failed.message}", f"  in {node.op} on executor {address}"]
    if failed.shapes:
        lines.append(f"  with {failed.shapes}")
    if where is not None and where.module:
        lines.append(f"  module {where.module}")
    if where is not None:
        lines.append(f"  called at {where.file}:{where.line}")
    lines.append("  What came before it is kept; what was recorded after it did not run.")
    return kind("\n".join(lines))
