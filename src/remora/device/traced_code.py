"""The functions that a trace went through, by the names under which the program finds them.

Dynamo has guards for what functions read, and takes it that a class keeps its methods and a module its functions.
Programs replace them all the same; then a traced call is not the call any more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

import torch

from remora.device.compile import inside

_MAX_OBJECTS = 2000


class TracedCode:
    """Names that have to mean what they meant.

    Args:
        codes: of the functions that were inlined.
        objects: the module and the arguments of the call; the classes of what is in them count.
    """

    def __init__(self, codes: Iterable[CodeType], objects: Iterable[Any]) -> None:
        wanted = set(codes)
        found: dict[tuple[int, str], tuple[Any, str, Any]] = {}
        for owner in (*_classes(objects), *_modules(wanted)):
            for name in _names(owner, wanted):
                value = getattr(owner, name, None)
                if value is getattr(owner, name, None):  # a class method is another object each time
                    found[id(owner), name] = owner, name, value
        self._owners = [owner for owner, _, _ in found.values()]
        self._names = [name for _, name, _ in found.values()]
        self._values = [value for _, _, value in found.values()]

    def unchanged(self) -> bool:
        try:
            return [*map(getattr, self._owners, self._names)] == self._values
        except AttributeError:
            return False


def _modules(codes: set[CodeType]) -> Iterator[Any]:
    """Python modules that hold the code, and the classes in them."""
    files = {code.co_filename for code in codes}
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) in files:
            yield module
            yield from (item for item in list(vars(module).values()) if isinstance(item, type))


def _classes(objects: Iterable[Any]) -> Iterator[type]:
    """The classes of the objects, and of what they hold."""
    seen: set[int] = set()
    classes: dict[type, None] = {}
    pending = list(objects)
    while pending and len(seen) < _MAX_OBJECTS:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.nn.Module):
            classes.update(dict.fromkeys(type(each) for each in item.modules()))
        elif not isinstance(item, torch.Tensor):
            classes[type(item)] = None
            pending.extend(inside(item, type(item)))
    yield from classes


def _names(owner: Any, codes: set[CodeType]) -> Iterator[str]:
    """The names under which the code is found in a class or in a Python module."""
    tables = [vars(base) for base in owner.__mro__] if isinstance(owner, type) else [vars(owner)]
    for table in tables:
        for name, item in list(table.items()):
            for function in (item, getattr(item, "__func__", None), getattr(item, "fget", None)):
                if isinstance(function, FunctionType) and function.__code__ in codes:
                    yield name
