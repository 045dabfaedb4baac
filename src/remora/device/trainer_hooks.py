"""What Remora changes in transformers' `TrainingArguments`, which knows devices by name: made when it is loaded.

`Trainer` takes this device where it would take the CPU without being told to, once the program has a session or
an address for one (device/accelerate_hooks.py: in_use).
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch

from remora.device.accelerate_hooks import in_use
from remora.device.late import waits, when_loaded

ARGUMENTS = "transformers.training_args"


def install() -> None:
    """Idempotent."""
    when_loaded(ARGUMENTS, _choose_remora)


def probe() -> str | None:
    """None if transformers is changed, or will be, or is not there; else what is wrong."""
    if importlib.util.find_spec("transformers") is None:
        return None
    if waits(ARGUMENTS):
        return None
    module = sys.modules.get(ARGUMENTS)
    if module is None:
        return f"{ARGUMENTS} is not changed when it is loaded"
    found = vars(getattr(module, "TrainingArguments", object)).get("_setup_devices")
    if not hasattr(getattr(found, "func", None), "_remora"):
        return f"{ARGUMENTS}.TrainingArguments has no _setup_devices that could be replaced"
    if not hasattr(getattr(module, "is_torch_bf16_gpu_available", None), "_remora"):
        return f"{ARGUMENTS} has no is_torch_bf16_gpu_available that could be replaced"
    return None


def _choose_remora(module: ModuleType) -> None:
    kind: Any = getattr(module, "TrainingArguments", None)
    plain = getattr(vars(kind).get("_setup_devices") if kind else None, "func", None)
    has_bf16 = getattr(module, "is_torch_bf16_gpu_available", None)
    if plain is None or has_bf16 is None or hasattr(plain, "_remora"):
        return

    @functools.wraps(plain)
    def _setup_devices(self: Any) -> torch.device:
        chosen: torch.device = plain(self)
        if chosen.type != "cpu" or self.use_cpu or not in_use():
            return chosen
        self._n_gpu = 1
        return torch.device("remora", 0)

    @functools.wraps(has_bf16)
    def is_torch_bf16_gpu_available() -> bool:
        return in_use() or bool(has_bf16())

    _setup_devices._remora = True  # type: ignore[attr-defined]
    is_torch_bf16_gpu_available._remora = True  # type: ignore[attr-defined]
    kind._setup_devices = functools.cached_property(_setup_devices)
    kind._setup_devices.__set_name__(kind, "_setup_devices")
    module.is_torch_bf16_gpu_available = is_torch_bf16_gpu_available  # type: ignore[attr-defined]
