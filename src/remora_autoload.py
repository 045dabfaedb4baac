"""What PyTorch calls at the end of `import torch`, in every program; most of them never asked for Remora.

It is a module of its own because a package that PyTorch has imported is not imported again by the program,
and then could not notice that the program asked for it.
"""

from __future__ import annotations

import os
import sys


def autoload() -> None:
    """Registers the device if `remora` was imported before torch, or if the environment asks for it."""
    if "remora" in sys.modules or os.environ.get("REMORA_URL") or os.environ.get("REMORA_AUTOLOAD"):
        import remora

        remora.activate()
