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
        self._storages: dict[int, list[int]] = {}  # address: [names, nbytes that count, nbytes]
        self.used_nbytes = 0
        self.held_nbytes = 0  # with mapped blobs
        self.peak_nbytes = 0  # of held_nbytes
        self.total_nbytes = 0  # ever kept

    @property
    def storages(self) -> int:
        return len(self._storages)

    def reset_peak(self) -> None:
        self.peak_nbytes = self.held_nbytes

    def keep(self, name: Name, tensor: torch.Tensor, counts: bool = True) -> None:
        """`counts=False`: the bytes are a mapped blob's, which the front counts."""
        if name in self.tensors:
            raise ProtocolError(f"value {name} exists already")
        storage = tensor.untyped_storage()
        self.tensors[name] = tensor
        entry = self._storages.get(storage.data_ptr())
        if entry is None:
            nbytes = storage.nbytes()
            counted_nbytes = nbytes if counts else 0
            self._storages[storage.data_ptr()] = [1, counted_nbytes, nbytes]
            self.used_nbytes += counted_nbytes
            self.total_nbytes += nbytes
            self.held_nbytes += nbytes
            if self.held_nbytes > self.peak_nbytes:
                self.peak_nbytes = self.held_nbytes
        else:
            entry[0] += 1

    def free(self, name: Name) -> None:
        """Unknown names are ignored: a skipped segment never made its values."""
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            return
        address = tensor.untyped_storage().data_ptr()
        entry = self._storages.get(address)
        if entry is None:  # the storage was resized in place; its weight was taken back when it moved
            return
        entry[0] -= 1
        if not entry[0]:
            del self._storages[address]
            self.used_nbytes -= entry[1]
            self.held_nbytes -= entry[2]

    def clear(self) -> None:
        self.tensors.clear()
        self._storages.clear()
        self.used_nbytes = self.held_nbytes = 0


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
    return tensor_from(data, dtype, shape).to(device)


def from_file(
    dtype_name: str, shape: tuple[int, ...], path: str, nbytes: int, device: torch.device, maps: Maps
) -> torch.Tensor:
    """A stored blob as this session's own tensor: mapped copy-on-write on a CPU, copied to another device."""
    dtype = checked_dtype(dtype_name)
    checked_nbytes(dtype, shape, nbytes)
    tensor = torch.frombuffer(maps.map(path, nbytes), dtype=dtype).reshape(shape)
    return tensor if device.type == "cpu" else tensor.to(device)
