"""Changes to PyTorch's modules that most programs never load: made when, and if, the module is imported."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_changes: dict[str, Callable[[ModuleType], None]] = {}
# Of modules that were being loaded when they were asked for.
_half: dict[str, Callable[[ModuleType], None]] = {}


def when_loaded(name: str, change: Callable[[ModuleType], None]) -> None:
    """Calls `change` with the module `name`: now if it is loaded, else as soon as it is.

    A module that is being loaded (it may be what imports PyTorch, and so Remora) is changed at the first import
    after that.
    """
    module = sys.modules.get(name)
    if module is not None and not _loading(module):
        change(module)
        return
    (_changes if module is None else _half)[name] = change
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _loading(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))


def _change_what_is_ready() -> None:
    for name in list(_half):
        module = sys.modules.get(name)
        if module is not None and not _loading(module) and (change := _half.pop(name, None)) is not None:
            change(module)


def waits(name: str) -> bool:
    """Whether the module is not loaded yet, and will be changed."""
    _change_what_is_ready()
    return name in _half or (
        name in _changes
        and name not in sys.modules
        and any(isinstance(finder, _Finder) for finder in sys.meta_path)
    )


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if _half:
            _change_what_is_ready()
        change = _changes.get(name)
        if change is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
