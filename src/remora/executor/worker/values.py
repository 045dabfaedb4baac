"""The values of one session by name, and what they weigh."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch

from remora.errors import ProtocolError
from remora.executor.worker.append import copied_out, exact, in_buffer, spares
from remora.executor.worker.memory import Maps
from remora.executor.worker.parked import Parked
from remora.ops.dtypes import BY_NAME, tensor_from
from remora.wire.binding import Name

MAX_VALUES = 1 << 18  # a session; an empty tensor takes memory too


class Values:
    """Named tensors. A storage counts once, however many names view it.

    loose: those that are views into a buffer that grows (append.py), which the program does not know.
    """

    def __init__(self) -> None:
        self.tensors: dict[Name, torch.Tensor] = {}
        self.loose: set[Name] = set()
        self._storages: dict[int, list[int]] = {}  # identity: [names, nbytes that count, nbytes]
        self.lent: dict[int, set[Name]] = {}  # identity of a storage that is somebody else's: the names in it
        self.parked = Parked()
        self.used_nbytes = 0
        self.held_nbytes = 0  # with mapped blobs
        self.peak_nbytes = 0  # of held_nbytes
        self.total_nbytes = 0  # ever kept

    @property
    def count(self) -> int:
        return len(self.tensors) + len(self.parked.places)

    @property
    def storages(self) -> int:
        return len(self._storages)

    def names(self, storage: int) -> bool:
        """Whether a name views the storage with this identity (`_cdata`)."""
        return storage in self._storages

    def reset_peak(self) -> None:
        self.peak_nbytes = self.held_nbytes

    def keep(self, name: Name, tensor: torch.Tensor, counts: bool = True) -> None:
        """`counts=False`: the bytes are a mapped blob's, which the front counts."""
        if name in self.tensors:
            raise ProtocolError(f"value {name} exists already")
        storage = tensor.untyped_storage()
        self.tensors[name] = tensor
        if storage._cdata in self.lent:
            self.lent[storage._cdata].add(name)
            counts = False
        entry = self._storages.get(storage._cdata)  # its address may change while it grows
        if entry is None:
            nbytes = storage.nbytes()
            counted_nbytes = nbytes if counts else 0
            self._storages[storage._cdata] = [1, counted_nbytes, nbytes]
            self.used_nbytes += counted_nbytes
            self._hold(nbytes)
        else:
            entry[0] += 1

    def keep_grown(self, name: Name, tensor: torch.Tensor) -> None:
        """Keeps what a growing row made."""
        self.keep(name, tensor)
        if in_buffer(tensor):
            self.loose.add(name)

    def copy_out(self, name: Name) -> None:
        """Makes a loose value what the program believes it to be. Raises RuntimeError if there is no memory."""
        self._replace(name, copied_out(self.tensors[name]))

    def exact(self, name: Name) -> torch.Tensor:
        """A value as the program believes it to be, for a reader that changes nothing."""
        tensor = self.tensors[name]
        return exact(tensor) if name in self.loose else tensor

    def trim(self) -> None:
        """Gives back the room that loose values have to spare, as far as there is memory to do it with."""
        for name in [name for name in self.loose if spares(self.tensors[name])]:
            try:
                self._replace(name, exact(self.tensors[name]))
            except RuntimeError:  # it was tried because memory is short: who wants more will say so
                return

    def _replace(self, name: Name, tensor: torch.Tensor) -> None:
        self.free(name)
        self.keep(name, tensor)

    def free(self, name: Name) -> None:
        """Unknown names are ignored: a skipped segment never made its values."""
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            if self.parked.places:
                self._count_parked(partial(self.parked.free, name))
            return
        self.loose.discard(name)
        storage = tensor.untyped_storage()._cdata
        if storage in self.lent:
            self.lent[storage].discard(name)
        entry = self._storages[storage]
        entry[0] -= 1
        if not entry[0]:
            del self._storages[storage]
            self.used_nbytes -= entry[1]
            self.held_nbytes -= entry[2]

    def lend(self, storage: int) -> None:
        """From here on a storage, by its identity, counts as its owner's, who may want it back (`move`)."""
        self.lent[storage] = set()

    def given(self, storage: int) -> None:
        """The owner of a storage that was lent has no more claim to it: what is left in it counts as the session's."""
        self.lent.pop(storage, None)
        entry = self._storages.get(storage)
        if entry is not None:
            self.used_nbytes += entry[2] - entry[1]
            entry[1] = entry[2]

    def park(self, storages: list[torch.Tensor]) -> None:
        """Copies all that has a name in these storages, each given as its bytes, out of them: until somebody reads
        it (`unpark`), only its bytes are kept. Raises OutOfMemoryError."""
        found = []
        for storage in storages:
            names = list(self.lent[storage.untyped_storage()._cdata])
            found.append({name: self.tensors[name] for name in names})
        self._count_parked(partial(self.parked.park, storages, found))
        for tensors in found:
            for name in tensors:
                self.free(name)
        self._count_parked(partial(self.parked.trim, self.keep))

    def unpark(self, names: Iterable[Name]) -> None:
        """Before values are read."""
        places = self.parked.places
        for name in names:
            if name in places:
                self._count_parked(partial(self.parked.take, name, self.keep))

    def _count_parked(self, change: Callable[[], None]) -> None:
        peak_nbytes, total_nbytes, nbytes = self.peak_nbytes, self.total_nbytes, self.parked.nbytes
        change()
        self.used_nbytes += self.parked.nbytes - nbytes
        self.held_nbytes += self.parked.nbytes - nbytes
        self.peak_nbytes, self.total_nbytes = peak_nbytes, total_nbytes

    def weigh_again(self) -> list[Name]:
        """After a program in which storages may have grown: the values whose storage did."""
        grown = []
        for name, tensor in self.tensors.items():
            storage = tensor.untyped_storage()
            if storage.nbytes() > self._storages[storage._cdata][2]:
                grown.append(name)
        for name in grown:
            storage = self.tensors[name].untyped_storage()
            entry = self._storages[storage._cdata]
            more_nbytes = storage.nbytes() - entry[2]
            entry[1] += more_nbytes
            entry[2] += more_nbytes
            self.used_nbytes += more_nbytes
            self._hold(more_nbytes)
        return grown

    def _hold(self, nbytes: int) -> None:
        self.total_nbytes += nbytes
        self.held_nbytes += nbytes
        if self.held_nbytes > self.peak_nbytes:
            self.peak_nbytes = self.held_nbytes

    def clear(self) -> None:
        self.tensors.clear()
        self.loose.clear()
        self._storages.clear()
        self.lent.clear()
        self.parked.clear()
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
    return tensor_from(data, dtype, shape).to(device, copy=True)  # in memory of its own, which may grow


def from_file(
    dtype_name: str, shape: tuple[int, ...], path: str, nbytes: int, device: torch.device, maps: Maps
) -> torch.Tensor:
    """A stored blob as this session's own tensor: mapped copy-on-write on a CPU, copied to another device."""
    dtype = checked_dtype(dtype_name)
    checked_nbytes(dtype, shape, nbytes)
    tensor = torch.frombuffer(maps.map(path, nbytes), dtype=dtype).reshape(shape)
    return tensor if device.type == "cpu" else tensor.to(device)
