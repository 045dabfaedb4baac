"""Remora runs unmodified PyTorch on accelerators across a network.

    import torch, remora
    remora.connect("http://gpu-box:8470", token="…")
    model = model.to("remora")

Importing this package registers the device `remora` as soon as torch is there. The command line and the
executor import it too and have no use for torch, so torch is never imported from here by itself.
"""

from __future__ import annotations

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from remora.device.as_cuda import as_cuda
    from remora.device.patches import probes
    from remora.device.routes import wait_warm
    from remora.session.connect import connect, disconnect, explain, stats

__version__ = "0.1.0"
__all__ = ["as_cuda", "connect", "disconnect", "explain", "probes", "stats", "wait_warm"]

_HOMES = {
    "connect": "remora.session.connect",
    "disconnect": "remora.session.connect",
    "explain": "remora.session.connect",
    "stats": "remora.session.connect",
    "probes": "remora.device.patches",
    "as_cuda": "remora.device.as_cuda",
    "wait_warm": "remora.device.routes",
}


def activate() -> None:
    """Registers the device, unless this process is an executor. Idempotent."""
    from remora.config import is_executor

    if is_executor():
        return
    import torch  # noqa: F401  # first, and whole: at its end it calls back here (remora_autoload.py)

    from remora.device.register import register
    from remora.session.connect import install

    register()
    install()


def __getattr__(name: str) -> _Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'remora' has no attribute {name!r}")
    activate()
    return getattr(__import__(home, fromlist=[name]), name)


if "torch" in _sys.modules:  # imported later: remora_autoload.py
    activate()
