"""Storages of remora tensors: an identity, equal for all tensors that share memory, and a way to the bytes."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from remora.capture.value import Value
from remora.device import unpickled
from remora.device.across import moved
from remora.device.addresses import (
    address_of_bytes,
    address_of_root,
    may_compare,
    nbytes_of,
    refuse_address,
    root_of,
)
from remora.device.ahead import expect
from remora.device.index import device_at, index_of
from remora.device.resize import grown
from remora.device.tensor import RemoraTensor, wrap
from remora.errors import NotSupported
from remora.ops.dtypes import bytes_of
from remora.ops.layout import end_of


def address_of(tensor: RemoraTensor) -> int:
    """Where the tensor's first element would be: unequal for tensors that share no memory."""
    return storage_of(tensor)._cdata + tensor.storage_offset() * tensor.element_size()


def saved_as(tensor: RemoraTensor) -> RemoraTensor:
    """The tensor, or a copy if more than its place says what it is: a view that conjugates or negates."""
    root = root_of(tensor)
    return tensor.clone() if root is not tensor._value and root.meta.dtype.is_complex else tensor  # type: ignore[return-value]


def storage_of(tensor: RemoraTensor) -> RemoraStorage:
    made = RemoraStorage.of(root_of(tensor))
    made.asked_by = weakref.ref(tensor)
    return made


def _refused(name: str) -> Any:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotSupported(
            f"{name}() of a storage on the remora device, whose memory is on an executor; "
            "work on a tensor, or on .cpu()"
        )

    return refuse


class RemoraStorage(torch.UntypedStorage):
    """The storage of a root value, or bytes that were loaded and go to the executor when a tensor needs them.

    root: a tensor over the root value; None until the bytes have gone.
    source: the bytes that have not gone yet, a CPU storage. index: of the device.
    """

    root: RemoraTensor | None
    source: torch.UntypedStorage | None
    index: int
    _address: int
    asked_by: weakref.ref[RemoraTensor] | None = None  # the tensor whose storage it was asked for as

    @classmethod
    def of(cls, root: Value) -> RemoraStorage:
        made: RemoraStorage = cls(nbytes_of(root), device="meta")
        made.root, made.source, made.index = wrap(root), None, root.meta.index
        made._address = address_of_root(root)
        return made

    @classmethod
    def holding(cls, source: torch.UntypedStorage, index: int) -> RemoraStorage:
        made: RemoraStorage = cls(source.nbytes(), device="meta")
        made.root, made.source, made.index = None, source, index
        made._address = address_of_bytes()
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return device_at(self.index)

    @property
    def _cdata(self) -> int:  # type: ignore[override]
        return self._address

    def data_ptr(self) -> int:
        if may_compare():  # which is what those do who save next
            asked_by = self.asked_by() if self.asked_by is not None else None
            if asked_by is not None:
                expect((asked_by,))
            return self._address
        raise refuse_address("the storage's data_ptr()")

    def is_shared(self) -> bool:
        return True  # as a storage of any accelerator

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def share_memory_(self, *args: Any, **kwargs: Any) -> RemoraStorage:
        return self

    def resizable(self) -> bool:
        return False

    @property
    def is_remora(self) -> bool:
        return True

    # -- bytes

    def cpu(self) -> torch.UntypedStorage:
        """A copy of all bytes. Blocks."""
        if self.source is not None:
            return self.source.clone()
        from remora.device.download import download

        assert self.root is not None
        meta = self.root._value.meta
        if nbytes_of(self.root._value) > end_of(meta.shape, meta.stride, meta.offset) * meta.dtype.itemsize:
            return download(flat(self.root)).untyped_storage()  # type: ignore[arg-type]
        local = download(self.root)
        if local.stride() == meta.stride and local.untyped_storage().nbytes() == self.nbytes():
            return local.untyped_storage()
        memory = torch.zeros(self.nbytes() // meta.dtype.itemsize, dtype=meta.dtype)
        memory.as_strided(meta.shape, meta.stride, meta.offset).copy_(local)
        return memory.untyped_storage()

    def to(self, *, device: Any, non_blocking: bool = False) -> torch.UntypedStorage:
        target = torch.device(device)
        if target.type == "remora":
            return self._on(index_of(target))
        return self.cpu() if target.type == "cpu" else self.cpu().to(device=target)

    def _on(self, index: int) -> RemoraStorage:
        """Itself, or a copy on another device."""
        if index == self.index:
            return self
        if self.source is not None:
            return RemoraStorage.holding(self.source, index)
        assert self.root is not None
        with torch.no_grad():
            return RemoraStorage.of(moved(flat(self.root), index, 2)._value)  # type: ignore[arg-type]

    def clone(self) -> RemoraStorage:
        if self.source is not None:
            return RemoraStorage.holding(self.source.clone(), self.index)
        root = self.root
        assert root is not None
        with torch.no_grad():
            gapless = root.numel() * root.element_size() == self.nbytes()
            return RemoraStorage.of((root if gapless else flat(root)).clone()._value)  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        copies = memo.setdefault("torch", {})
        if self._cdata not in copies:
            copies[self._cdata] = self.clone()
        return copies[self._cdata]

    __copy__ = clone

    def __getitem__(self, index: Any) -> Any:
        return self.cpu()[index]

    def tolist(self) -> list[int]:
        return self.cpu().tolist()

    def __iter__(self) -> Any:
        return iter(self.tolist())

    def __repr__(self) -> str:
        return f"[torch.storage.UntypedStorage(device={self.device}) of size {len(self)}]"

    def _write_file(self, *args: Any, **kwargs: Any) -> Any:
        return self.cpu()._write_file(*args, **kwargs)

    def _set_from_file(self, *args: Any) -> None:
        """Old files have the bytes behind the tensors: these are overwritten then."""
        from remora.device.upload import upload

        read = torch.UntypedStorage(self.nbytes())
        read._set_from_file(*args)
        if self.root is None:
            self.source = read
            return
        with torch.no_grad():
            memory = flat(self.root)
            memory.copy_(upload(torch.empty(0, dtype=memory.dtype).set_(read), self.index))

    def __reduce__(self) -> Any:
        local = torch.empty(0, dtype=torch.uint8).set_(self.cpu())  # its bytes live as long as it does
        return unpickled.storage, (bytes(bytes_of(local)), self.index)

    def tensor(
        self, dtype: torch.dtype, offset: int = 0, size: Any = None, stride: Any = None
    ) -> RemoraTensor:
        """A tensor over the memory; without a size, all of it."""
        if size is None:
            size = (self.nbytes() // dtype.itemsize,)
        if stride is None:
            stride = torch.empty(size, device="meta").stride()
        needed = end_of(size, stride, offset) * dtype.itemsize
        if needed > self.nbytes():
            raise RuntimeError(
                f"setStorage: sizes {list(size)}, strides {list(stride)}, storage offset {offset}, and itemsize "
                f"{dtype.itemsize} requiring a storage size of {needed} are out of bounds for storage of size "
                f"{self.nbytes()}"
            )
        with torch.no_grad():
            if self.root is None:
                self._upload(dtype, size, stride, offset)
            assert self.root is not None
            if self.root.dtype is dtype and _placed(self.root, size, stride, offset):
                return self.root
            memory = self.root if self.root.dtype is dtype else flat(self.root).view(dtype)
            return memory.as_strided(size, stride, offset)  # type: ignore[return-value]

    def _upload(self, dtype: torch.dtype, size: Any, stride: Any, offset: int) -> None:
        """Sends the bytes, in the shape of the first tensor that needs them if it covers them all."""
        from remora.device.upload import upload

        assert self.source is not None
        memory = torch.empty(0, dtype=dtype)
        covered = torch.Size(size).numel() * dtype.itemsize == self.nbytes()
        if covered and not offset and end_of(size, stride, 0) == torch.Size(size).numel():
            memory.set_(self.source, 0, size, stride)
        else:
            memory.set_(self.source, 0, (self.nbytes() // dtype.itemsize,), (1,))
        self.root = upload(memory, self.index)
        self.source = None
        self._address = address_of_root(self.root._value)

    byteswap = _refused("byteswap")
    copy_ = _refused("copy_")
    fill_ = _refused("fill_")
    pin_memory = _refused("pin_memory")
    resize_ = _refused("resize_")
    __setitem__ = _refused("__setitem__")
    _share_fd_cpu_ = _refused("_share_fd_cpu_")
    _share_filename_cpu_ = _refused("_share_filename_cpu_")


class TypedStorage(torch.TypedStorage):
    """As PyTorch's; when pickled by itself (torch.save is another way) it registers the device where it is loaded."""

    def __new__(cls, storage: RemoraStorage, dtype: torch.dtype) -> TypedStorage:
        made: TypedStorage = object.__new__(cls)
        made.dtype, made._untyped_storage = dtype, storage
        return made

    def __init__(self, *args: Any) -> None: ...

    def __reduce__(self) -> Any:
        saved, index = self._untyped_storage.__reduce__()[1]
        return unpickled.typed_storage, (saved, self.dtype, index)


def _placed(tensor: torch.Tensor, size: Any, stride: Any, offset: int) -> bool:
    return (
        tuple(tensor.shape) == tuple(size)
        and tensor.stride() == tuple(stride)
        and tensor.storage_offset() == offset
    )


def flat(root: RemoraTensor) -> torch.Tensor:
    """The root's memory as one dimension; the root itself if that is what it is."""
    size = (nbytes_of(root._value) // root.element_size(),)
    if _placed(root, size, (1,), 0):
        return root
    if size[0] > end_of(root.shape, root.stride(), root.storage_offset()):
        return grown(root, size[0])
    return root.as_strided(size, (1,), 0)


# -- torch.save and torch.load


def register_storages() -> None:
    """Makes torch.save and torch.load know the storages, by PyTorch's own registry of devices."""
    torch.serialization.register_package(15, _tag, _deserialize)


def _tag(storage: Any) -> str | None:
    return str(storage.device) if isinstance(storage, RemoraStorage) else None


def _deserialize(storage: Any, location: str) -> Any:
    if location != "remora" and not location.startswith("remora:"):
        return None
    index = index_of(location)
    return storage._on(index) if isinstance(storage, RemoraStorage) else RemoraStorage.holding(storage, index)
