"""Where a row comes from: the user's file and line, and the path of the module that ran it.

Read from the Python stack, once, when a row is seen for the first time; a repeated row costs nothing.
"""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_LIBRARIES = tuple(
    {str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {str(Path(__file__).resolve().parents[1])}
)
_is_library: dict[CodeType, bool] = {}


@dataclass(frozen=True)
class Provenance:
    """module: dotted path from the outermost module on the stack, with its class; '' outside modules."""

    file: str
    line: int
    module: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}"
        return f"{place}, in {self.module}" if self.module else place


def in_library(code: CodeType) -> bool:
    """Whether the code belongs to Python, to an installed package or to Remora, and not to the user."""
    known = _is_library.get(code)
    if known is None:
        name = code.co_filename
        known = name.startswith("<frozen") or str(Path(name).resolve()).startswith(_LIBRARIES)
        _is_library[code] = known
    return known


def user_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the user's own code, else the outermost frame."""
    last = frame
    while frame is not None:
        if not in_library(frame.f_code):
            return frame
        last, frame = frame, frame.f_back
    return last


def provenance(frame: FrameType | None) -> Provenance:
    """Reads the stack from `frame` outwards."""
    user = user_frame(frame)
    if user is None:
        return Provenance("<unknown>", 0, "")
    return Provenance(user.f_code.co_filename, user.f_lineno, _module_path(frame))


def _module_path(frame: FrameType | None) -> str:
    modules: list[Any] = []
    while frame is not None:
        if frame.f_code.co_name == "_call_impl":
            module = frame.f_locals.get("self")
            if hasattr(module, "_modules") and (not modules or modules[-1] is not module):
                modules.append(module)
        frame = frame.f_back
    if not modules:
        return ""
    modules.reverse()
    parts = [type(modules[0]).__name__]
    for parent, child in zip(modules, modules[1:], strict=False):
        parts.append(_name_in(parent, child))
    return f"{'.'.join(parts)} ({type(modules[-1]).__name__})"


def _name_in(parent: Any, child: Any) -> str:
    for name, module in parent.named_modules():
        if module is child:
            return str(name)
    return type(child).__name__
