"""Where saving, loading and exchange of tensors reach into a tensor without asking it."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

from remora.device.addresses import refuse_address
from remora.device.tensor import RemoraTensor


def replace_set_metadata() -> None:
    original = torch._utils.set_tensor_metadata
    if hasattr(original, "_remora"):
        return

    @functools.wraps(original)
    def set_tensor_metadata(tensor: Any, metadata: dict[str, bool]) -> None:
        if type(tensor) is not RemoraTensor:
            return original(tensor, metadata)
        with torch.no_grad():
            if metadata.get("conj"):
                tensor.data = tensor.conj_physical()
            if metadata.get("neg"):
                tensor.data = tensor.neg()
        return None

    set_tensor_metadata._remora = True  # type: ignore[attr-defined]
    torch._utils.set_tensor_metadata = set_tensor_metadata


def probe_set_metadata() -> str | None:
    if (
        torch._utils._rebuild_tensor_v2.__globals__.get("set_tensor_metadata")
        is not torch._utils.set_tensor_metadata
    ):
        return "torch.load does not use torch._utils.set_tensor_metadata"
    return None if hasattr(torch._utils.set_tensor_metadata, "_remora") else "not replaced"


def replace_storage_to() -> None:
    original = torch.UntypedStorage.to
    if hasattr(original, "_remora"):
        return

    @functools.wraps(original)
    def to(self: Any, *, device: Any, non_blocking: bool = False) -> Any:
        if torch.device(device).type == "remora":
            return torch.serialization.default_restore_location(self, str(device))
        return original(self, device=device, non_blocking=non_blocking)

    def remora(self: Any, device: Any = None, non_blocking: bool = False) -> Any:
        return to(self, device="remora" if device is None else torch.device("remora", device))

    to._remora = True  # type: ignore[attr-defined]
    torch.UntypedStorage.to = to  # type: ignore[method-assign]
    torch.UntypedStorage.remora = remora  # type: ignore[attr-defined]


def probe_storage_to() -> str | None:
    storage = torch.zeros(1).untyped_storage()
    if storage.to(device="cpu") is not storage:
        return "UntypedStorage.to() lost its arguments"
    return None if storage.to(device="remora").device.type == "remora" else "storages do not go to remora"


def replace_to_dlpack() -> None:
    original = torch.utils.dlpack.to_dlpack
    if hasattr(original, "_remora"):
        return

    @functools.wraps(original)
    def to_dlpack(tensor: Any) -> Any:
        if type(tensor) is RemoraTensor:
            raise refuse_address("DLPack")
        return original(tensor)

    to_dlpack._remora = True  # type: ignore[attr-defined]
    torch.utils.dlpack.to_dlpack = to_dlpack
    torch.to_dlpack = to_dlpack  # type: ignore[attr-defined]


def probe_to_dlpack() -> str | None:
    return None if hasattr(torch.utils.dlpack.to_dlpack, "_remora") else "not replaced"


def replace_safe_open() -> None:
    """Does nothing where safetensors is not installed."""
    try:
        import safetensors
    except ImportError:
        return
    original = safetensors.safe_open
    if hasattr(original, "_remora"):
        return

    class Meta(type):
        def __instancecheck__(cls, item: Any) -> bool:
            return isinstance(item, original)

    class safe_open(metaclass=Meta):  # noqa: N801  # the name that it has
        __doc__ = original.__doc__
        _remora = True

        def __new__(cls, filename: Any, framework: str, device: Any = "cpu", **options: Any) -> Any:
            if not _is_remora(device):
                return original(filename, framework, device, **options)
            return _Opened(original(filename, framework, "cpu", **options), torch.device(device))

    for module in list(sys.modules.values()):  # who has imported it by name already
        if module is not None and getattr(module, "__dict__", {}).get("safe_open") is original:
            module.safe_open = safe_open  # type: ignore[attr-defined]


def _is_remora(device: Any) -> bool:
    if isinstance(device, int):
        accelerator = torch.accelerator.current_accelerator()
        return accelerator is not None and accelerator.type == "remora"
    return (isinstance(device, str) and device.split(":")[0] == "remora") or (
        isinstance(device, torch.device) and device.type == "remora"
    )


class _Opened:
    """An open safetensors file whose tensors go to the device."""

    def __init__(self, file: Any, device: torch.device) -> None:
        self._file, self._device = file, device

    def __enter__(self) -> _Opened:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name).to(self._device)  # type: ignore[no-any-return]

    def get_tensors(self) -> dict[str, torch.Tensor]:
        return {name: self.get_tensor(name) for name in self._file.keys()}  # noqa: SIM118  # a file, no dict

    def get_slice(self, name: str) -> _Slice:
        return _Slice(self._file.get_slice(name), self._device)


class _Slice:
    """A tensor of the file, read in part."""

    def __init__(self, part: Any, device: torch.device) -> None:
        self._part, self._device = part, device

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._part[index].to(self._device)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def probe_safe_open() -> str | None:
    safetensors = sys.modules.get("safetensors")
    return None if safetensors is None or hasattr(safetensors.safe_open, "_remora") else "not replaced"
