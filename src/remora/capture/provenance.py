"""Where a row comes from: the user's file and line, and the path of the module that ran it.

Read from the Python stack, once, when a row is seen for the first time; a repeated row costs nothing.
"""

from __future__ import annotations

import itertools
import sysconfig
import weakref
from pathlib import Path
from types import FrameType
from typing import Any

_LIBRARIES = tuple(
    {str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {str(Path(__file__).resolve().parents[1])}
)
_is_library: dict[str, bool] = {}


class Provenance:
    """The user's file and line, and the modules whose calls were on the stack, outermost first.

    The modules are held weakly and named only when somebody asks: naming walks the whole model.
    """

    __slots__ = ("_modules", "file", "line")

    def __init__(self, file: str, line: int, modules: tuple[weakref.ref[Any], ...]) -> None:
        self.file, self.line, self._modules = file, line, modules

    @property
    def model(self) -> Any:
        """The outermost module; None outside modules, or when it is gone."""
        return self._modules[0]() if self._modules else None

    @property
    def module(self) -> str:
        """Dotted path from the outermost module, with the innermost one's class; '' outside modules."""
        modules = [module for module in (ref() for ref in self._modules) if module is not None]
        if not modules:
            return ""
        names = [_name_in(parent, child) for parent, child in itertools.pairwise(modules)]
        return f"{'.'.join([type(modules[0]).__name__, *names])} ({type(modules[-1]).__name__})"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}"
        module = self.module
        return f"{place}, in {module}" if module else place


def in_library(file: str) -> bool:
    """Whether a code object's file belongs to Python, to an installed package or to Remora, and not to the user."""
    known = _is_library.get(file)
    if known is None:
        known = file.startswith("<frozen") or str(Path(file).resolve()).startswith(_LIBRARIES)
        _is_library[file] = known
    return known


def user_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the user's own code, else the outermost frame."""
    last = frame
    while frame is not None:
        file = frame.f_code.co_filename
        known = _is_library.get(file)  # by file: a code object's own hash reads all its constants
        if not (in_library(file) if known is None else known):
            return frame
        last, frame = frame, frame.f_back
    return last


def provenance(frame: FrameType | None) -> Provenance:
    """Reads the stack from `frame` outwards, once: it is done for each row that is new."""
    user, last = None, frame
    modules: list[weakref.ref[Any]] = []
    while frame is not None:
        code = frame.f_code
        if user is None:
            known = _is_library.get(code.co_filename)
            if not (in_library(code.co_filename) if known is None else known):
                user = frame
        if code.co_name == "_call_impl":
            module = frame.f_locals.get("self")
            if hasattr(module, "_modules"):
                modules.append(weakref.ref(module))
        last, frame = frame, frame.f_back
    user = user or last
    if user is None:
        return Provenance("<unknown>", 0, ())
    return Provenance(user.f_code.co_filename, user.f_lineno, tuple(reversed(modules)))


def _name_in(parent: Any, child: Any) -> str:
    for modules in (parent.named_children, parent.named_modules):
        for name, module in modules():
            if module is child:
                return str(name)
    return type(child).__name__
