"""What Remora changes in accelerate, which knows third-party devices only by name: made when, and if, it is loaded.

`Accelerator()` and `Trainer` take this device where they would take the CPU, and `device_map="auto"` counts its
memory, once the program has a session or an address for one. Until then nothing is different.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch

from remora.config import ClientSettings
from remora.device.late import waits, when_loaded
from remora.device.memory import mem_get_info
from remora.device.sink import bound

STATE, MODELING = "accelerate.state", "accelerate.utils.modeling"
SHARE = 0.9  # of the free memory; the rest is for activations, as transformers leaves it on a GPU


def install() -> None:
    """Idempotent."""
    when_loaded(STATE, _choose_remora)
    when_loaded(MODELING, _count_remora)


def probe() -> str | None:
    """None if accelerate is changed, or will be, or is not there; else what is wrong."""
    if importlib.util.find_spec("accelerate") is None:
        return None
    for name, owner, attribute in (
        (STATE, "PartialState", "default_device"),
        (MODELING, None, "get_max_memory"),
    ):
        if waits(name):
            continue
        module = sys.modules.get(name)
        if module is None:
            return f"{name} is not changed when it is loaded"
        place = getattr(module, owner, None) if owner else module
        changed = getattr(place, attribute, None)
        if not hasattr(getattr(changed, "fget", changed), "_remora"):
            return f"{name} has no {attribute} that could be replaced"
    return None


def in_use() -> bool:
    """Whether the program has a session, or has named an executor for one."""
    return bound.recorder is not None or (bound.ended is None and ClientSettings().url is not None)


def _choose_remora(module: ModuleType) -> None:
    kind: Any = getattr(module, "PartialState", None)
    plain = getattr(getattr(kind, "default_device", None), "fget", None)
    if plain is None or hasattr(plain, "_remora"):
        return

    @functools.wraps(plain)
    def default_device(self: Any) -> torch.device:
        chosen: torch.device = plain(self)
        return torch.device("remora", 0) if chosen.type == "cpu" and in_use() else chosen

    default_device._remora = True  # type: ignore[attr-defined]
    kind.default_device = property(default_device)


def _count_remora(module: ModuleType) -> None:
    plain: Any = getattr(module, "get_max_memory", None)
    if plain is None or hasattr(plain, "_remora"):
        return

    @functools.wraps(plain)
    def get_max_memory(max_memory: dict[Any, Any] | None = None) -> dict[Any, Any]:
        if max_memory is None:
            found = plain(None)
            if not in_use() or any(isinstance(key, int) for key in found):
                return found  # type: ignore[no-any-return]
            free = [int(mem_get_info(index)[0] * SHARE) for index in range(bound.n_devices)]
            if len(free) == 1:
                return {"remora:0": free[0], **found}
            return {**dict(enumerate(free)), **found}  # numbers are what transformers balances between
        for key, size in max_memory.items():  # in the caller's dict, as accelerate does it
            if isinstance(size, str):
                max_memory[key] = module.convert_file_size_to_int(size)  # type: ignore[attr-defined]
        ours = {key: size for key, size in max_memory.items() if _is_ours(key)}
        return ours | plain({key: size for key, size in max_memory.items() if key not in ours})

    _replace(plain, get_max_memory)


def _is_ours(key: Any) -> bool:
    """Whether a device, as accelerate writes it, is a remora device: by name, or by number among several."""
    if isinstance(key, int):
        return key < bound.n_devices > 1 and torch.device(key).type == "remora"
    return str(key).partition(":")[0] == "remora"


def _replace(plain: Any, changed: Any) -> None:
    """In its own module, and in those that have imported it already."""
    changed._remora = True
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith(("accelerate", "transformers.integrations.accelerate")):
            for name, item in list(vars(module).items()):
                if item is plain:
                    setattr(module, name, changed)
