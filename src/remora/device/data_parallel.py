"""`nn.DataParallel` on one executor: its scatter, and its replicas, need C++ functions that only CUDA builds have."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.parallel import DataParallel
from torch.utils._pytree import tree_map

from remora.device.sink import bound
from remora.errors import NotSupported


def install() -> None:
    scatter = DataParallel.scatter
    if hasattr(scatter, "_remora"):
        return

    @functools.wraps(scatter)
    def scattered(self: Any, inputs: Any, kwargs: Any, device_ids: Any) -> Any:
        device = self.src_device_obj
        if device.type != "remora":
            return scatter(self, inputs, kwargs, device_ids)
        if len(device_ids) > 1:
            instead = (
                "a session has one; leave device_ids out"
                if bound.n_devices == 1
                else f"give device_ids=[{device_ids[0]}], or put parts of the model on each device"
            )
            raise NotSupported(f"nn.DataParallel over {len(device_ids)} executors: {instead}")
        return tree_map(
            lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, ([inputs], [kwargs or {}])
        )

    scattered._remora = True  # type: ignore[attr-defined]
    DataParallel.scatter = scattered


def probe() -> str | None:
    return None if hasattr(DataParallel.scatter, "_remora") else "nn.DataParallel.scatter is PyTorch's own"
