"""`torch.remora`: what PyTorch expects a device to offer, as `torch.cuda` does; each subject has a file of its own."""

from __future__ import annotations

import types
from typing import Any

import torch

from remora.device import rng
from remora.device.autocast import supported_dtypes
from remora.device.sink import bound


class DeviceModule(types.ModuleType):
    """The device module. One executor: device_count is 1."""

    manual_seed = manual_seed_all = staticmethod(rng.manual_seed)
    seed = seed_all = staticmethod(rng.seed)
    initial_seed = staticmethod(rng.default.initial_seed)
    get_rng_state = staticmethod(rng.get_rng_state)
    set_rng_state = staticmethod(rng.set_rng_state)
    get_rng_state_all = staticmethod(rng.get_rng_state_all)
    set_rng_state_all = staticmethod(rng.set_rng_state_all)
    default_generators = (rng.default,)

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return bound.recorder is not None

    @property
    def _initialized(self) -> bool:
        """Whether there is a generator state to keep: torch.utils.checkpoint asks for it by this name."""
        return bound.recorder is not None

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        only_device(device)

    def synchronize(self, device: Any = None) -> None:
        """Blocks until everything recorded so far has run."""
        only_device(device)
        if bound.sink is not None:
            bound.sink.barrier()

    def empty_cache(self) -> None: ...

    def is_bf16_supported(self) -> bool:
        return True

    get_amp_supported_dtype = staticmethod(supported_dtypes)

    class device:  # noqa: N801  # as torch.cuda.device
        """A `with` block on a device; there is one."""

        def __init__(self, device: Any) -> None:
            only_device(device)
            self.idx = 0

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    class device_of(device):  # noqa: N801
        """A `with` block on the device of a tensor."""

        def __init__(self, obj: Any) -> None:
            super().__init__(obj.device if obj.device.type == "remora" else None)


def only_device(device: Any) -> int:
    """0, the index of the only device. Raises RuntimeError for another one."""
    index = device
    if device is not None and not isinstance(device, int):
        device = torch.device(device)
        if device.type != "remora":
            raise ValueError(f"Expected a remora device, but got: {device}")
        index = device.index
    if index not in (None, -1, 0):
        raise RuntimeError(f"remora:{index} does not exist: this session has one executor, remora:0")
    return 0


def torch_version() -> str:
    return str(torch.__version__)
