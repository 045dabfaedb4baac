"""`torch.remora`: what PyTorch expects a device to offer, as `torch.cuda` does."""

from __future__ import annotations

import types
from typing import Any

import torch

from remora.device.sink import bound


class DeviceModule(types.ModuleType):
    """The device module. One executor: device_count is 1."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return bound.recorder is not None

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        index = device if isinstance(device, int) else torch.device(device).index
        if index not in (None, 0):
            raise RuntimeError(f"remora:{index} does not exist: this session has one executor, remora:0")

    def manual_seed(self, seed: int) -> None:
        """Seeds the session's generator on the executor; before a session, `torch.manual_seed` is enough."""
        if bound.sink is not None:
            bound.sink.seed(int(seed))

    def manual_seed_all(self, seed: int) -> None:
        self.manual_seed(seed)

    def get_rng_state(self, device: Any = "remora") -> torch.Tensor:
        _, sink = bound.need()
        return torch.frombuffer(bytearray(sink.rng_state()), dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: Any = "remora") -> None:
        _, sink = bound.need()
        sink.rng_state(bytes(state.tolist()))

    def synchronize(self, device: Any = None) -> None:
        if bound.sink is not None:
            bound.sink.barrier()

    def empty_cache(self) -> None: ...

    def is_bf16_supported(self) -> bool:
        return True

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def initial_seed() -> int:
    """The seed of PyTorch's default generator: what a session starts from if nobody seeds again."""
    return int(torch.initial_seed())


def torch_version() -> str:
    return str(torch.__version__)
