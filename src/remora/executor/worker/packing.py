"""Values to bytes that another executor makes the same values of, and back; what shared a storage shares one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from remora.ops.dtypes import BY_NAME, NAMES
from remora.ops.own import span_of
from remora.wire.binding import Name
from remora.wire.limits import MAX_DIMS
from remora.wire.parcel import ALIGN_NBYTES, Parcel, Part, padded

_WORTH = 1.25  # a storage goes whole if that is at most so many times what its values need
_SLACK_NBYTES = 256

Fill = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class Packed:
    """fill: one a storage; writes it into uint8 memory of its size, on the CPU or the values' device."""

    parcel: Parcel
    fill: tuple[Fill, ...]

    def into(self, memory: torch.Tensor) -> None:
        """Writes the body. memory: uint8, at least `parcel.body_nbytes`."""
        at = 0
        for nbytes, fill in zip(self.parcel.storages, self.fill, strict=True):
            fill(memory[at : at + nbytes])
            at += padded(nbytes)


def pack(push: str, names: list[Name], tensors: list[torch.Tensor], whole: bool) -> Packed:
    """How to send `tensors`; reads nothing of them yet.

    whole: each storage in full, every offset and stride as it is.

    Raises:
        TypeError: a tensor's kind has no bytes to send.
    """
    groups: dict[int, list[tuple[Name, torch.Tensor]]] = {}
    for name, tensor in zip(names, tensors, strict=True):
        _check(name, tensor)
        groups.setdefault(tensor.untyped_storage()._cdata, []).append((name, _plain(tensor)))
    flags = {name: (t.is_conj(), t.is_neg()) for name, t in zip(names, tensors, strict=True)}
    storages: list[int] = []
    fills: list[Fill] = []
    parts: dict[Name, Part] = {}
    for members in groups.values():
        first_nbytes, nbytes, dense = _extent([t for _, t in members], whole)
        for name, t in members:
            stride = _dense_stride(t) if dense else t.stride()
            offset = (
                0
                if dense or not (whole or t.numel())
                else t.storage_offset() - first_nbytes // t.element_size()
            )
            shape, dtype = tuple(t.shape), NAMES[t.dtype]
            parts[name] = Part(name, len(storages), dtype, shape, stride, offset, *flags[name])
        fills.append(_dense(members[0][1]) if dense else _range(members[0][1], first_nbytes, nbytes))
        storages.append(nbytes)
    return Packed(Parcel(push, tuple(storages), tuple(parts[name] for name in names)), tuple(fills))


def _check(name: Name, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.dtype not in NAMES:
        raise TypeError(
            f"value {name}, {tensor.layout} of {tensor.dtype}, cannot be sent to another executor"
        )
    if tensor.dim() > MAX_DIMS:
        raise TypeError(f"value {name} has {tensor.dim()} dimensions; {MAX_DIMS} can be sent")


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, read without conjugating or negating."""
    if tensor.is_neg():
        tensor = torch._neg_view(tensor)
    return tensor.conj() if tensor.is_conj() else tensor


def _extent(tensors: list[torch.Tensor], whole: bool) -> tuple[int, int, bool]:
    """First byte and number of bytes of the storage to send; or, if true, one tensor's elements on their own."""
    storage_nbytes = tensors[0].untyped_storage().nbytes()
    first_nbytes, end_nbytes = storage_nbytes, 0
    for t in tensors:
        if t.numel():
            at = t.storage_offset() * t.element_size()
            first_nbytes = min(first_nbytes, at)
            end_nbytes = max(end_nbytes, at + span_of(t.shape, t.stride()) * t.element_size())
    if whole:
        return 0, storage_nbytes, False
    if not end_nbytes:
        return 0, 0, False
    first_nbytes -= first_nbytes % ALIGN_NBYTES
    span_nbytes = end_nbytes - first_nbytes
    alone_nbytes = tensors[0].numel() * tensors[0].element_size() if len(tensors) == 1 else span_nbytes
    if storage_nbytes <= _WORTH * min(span_nbytes, alone_nbytes) + _SLACK_NBYTES:
        return 0, storage_nbytes, False
    if span_nbytes <= alone_nbytes + ALIGN_NBYTES:
        return first_nbytes, span_nbytes, False
    return 0, alone_nbytes, True


def _order(t: torch.Tensor) -> list[int]:
    """Dimensions from the slowest to the fastest."""
    return sorted(range(t.dim()), key=lambda dim: -t.stride(dim))


def _dense_stride(t: torch.Tensor) -> tuple[int, ...]:
    stride, step = [0] * t.dim(), 1
    for dim in reversed(_order(t)):
        stride[dim] = step
        step *= t.shape[dim]
    return tuple(stride)


def _dense(t: torch.Tensor) -> Fill:
    def fill(memory: torch.Tensor) -> None:
        torch.empty(0, dtype=t.dtype, device=memory.device).set_(
            memory.untyped_storage(), memory.storage_offset() // t.element_size(), t.shape, _dense_stride(t)
        ).copy_(t)

    return fill


def _range(t: torch.Tensor, first_nbytes: int, nbytes: int) -> Fill:
    def fill(memory: torch.Tensor) -> None:
        source = torch.empty(0, dtype=torch.uint8, device=t.device)
        memory.copy_(source.set_(t.untyped_storage(), first_nbytes, (nbytes,), (1,)))

    return fill


def unpack(parcel: Parcel, storages: list[torch.Tensor]) -> dict[Name, torch.Tensor]:
    """The values of a checked parcel; storages: uint8, on the device, each in a storage of its own."""
    made = {}
    for part in parcel.parts:
        memory = storages[part.storage]
        tensor = torch.empty(0, dtype=BY_NAME[part.dtype], device=memory.device)
        tensor.set_(memory.untyped_storage(), part.offset, part.shape, part.stride)
        if part.conjugate:
            tensor = tensor.conj()
        if part.negative:
            tensor = torch._neg_view(tensor)
        made[part.name] = tensor
    return made
