"""The values of one session by name, and what they weigh."""

from __future__ import annotations

import torch

from remora.errors import ProtocolError
from remora.executor.worker.memory import Maps
from remora.ops.dtypes import BY_NAME, tensor_from
from remora.wire.binding import Name


class Values:
    """Named tensors. A storage counts once, however many names view it."""

    def __init__(self) -> None:
        self.tensors: dict[Name, torch.Tensor] = {}
        self._storages: dict[int, list[int]] = {}  # identity: [names, nbytes]
        self.used_nbytes = 0

    def keep(self, name: Name, tensor: torch.Tensor, counts: bool = True) -> None:
        """`counts=False`: the bytes are a mapped blob's, which the front counts."""
        if name in self.tensors:
            raise ProtocolError(f"value {name} exists already")
        storage = tensor.untyped_storage()
        self.tensors[name] = tensor
        entry = self._storages.get(storage._cdata)  # its address may change while it grows
        if entry is None:
            nbytes = storage.nbytes() if counts else 0
            self._storages[storage._cdata] = [1, nbytes]
            self.used_nbytes += nbytes
        else:
            entry[0] += 1

    def free(self, name: Name) -> None:
        """Unknown names are ignored: a skipped segment never made its values."""
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            return
        storage = tensor.untyped_storage()._cdata
        entry = self._storages[storage]
        entry[0] -= 1
        if not entry[0]:
            del self._storages[storage]
            self.used_nbytes -= entry[1]

    def weigh_again(self) -> list[Name]:
        """After a program in which storages may have grown: the values whose storage did."""
        grown = []
        for name, tensor in self.tensors.items():
            storage = tensor.untyped_storage()
            if storage.resizable() and storage.nbytes() > self._storages[storage._cdata][1]:
                grown.append(name)  # a mapped blob's bytes are not counted here, and it cannot grow
        for name in grown:
            storage = self.tensors[name].untyped_storage()
            entry = self._storages[storage._cdata]
            self.used_nbytes += storage.nbytes() - entry[1]
            entry[1] = storage.nbytes()
        return grown

    def clear(self) -> None:
        self.tensors.clear()
        self._storages.clear()
        self.used_nbytes = 0


def checked_dtype(name: str) -> torch.dtype:
    dtype = BY_NAME.get(name)
    if dtype is None:
        raise ProtocolError(f"this executor has no dtype {name!r}")
    return dtype


def checked_nbytes(dtype: torch.dtype, shape: tuple[int, ...], nbytes: int) -> None:
    expected = dtype.itemsize
    for size in shape:
        expected *= size
    if expected != nbytes:
        raise ProtocolError(
            f"{nbytes} bytes for a {dtype} tensor of shape {list(shape)}, which needs {expected}"
        )


def from_bytes(dtype_name: str, shape: tuple[int, ...], data: bytes, device: torch.device) -> torch.Tensor:
    dtype = checked_dtype(dtype_name)
    checked_nbytes(dtype, shape, len(data))
    return tensor_from(data, dtype, shape).to(device, copy=True)  # in memory of its own, which may grow


def from_file(
    dtype_name: str, shape: tuple[int, ...], path: str, nbytes: int, device: torch.device, maps: Maps
) -> torch.Tensor:
    """A stored blob as this session's own tensor: mapped copy-on-write on a CPU, copied to another device."""
    dtype = checked_dtype(dtype_name)
    checked_nbytes(dtype, shape, nbytes)
    tensor = torch.frombuffer(maps.map(path, nbytes), dtype=dtype).reshape(shape)
    return tensor if device.type == "cpu" else tensor.to(device)
