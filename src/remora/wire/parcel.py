"""What one executor sends another: the head of a body that holds the bytes of values, checked before they come.

A body is the encoded `Parcel`, then the bytes of each storage, each padded to a multiple of ALIGN_NBYTES.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from remora.errors import ProtocolError
from remora.wire.codec import encode
from remora.wire.limits import MAX_BLOB_NBYTES, MAX_NUMEL, MAX_PARCEL_HEADER_NBYTES, MAX_PUSHED
from remora.wire.messages import Dtype, Meta, Nbytes, Row, Segment, Shape, Size

ALIGN_NBYTES = 16  # no element is larger

ELEMENT_NBYTES: dict[str, int] = {
    **dict.fromkeys(("bool", "uint8", "int8"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32", "complex32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One value: a view of storage number `storage`. stride, offset: in elements. conjugate, negative: lazily."""

    name: tuple[Segment, Row, Row]
    storage: Annotated[int, Meta(ge=0, lt=MAX_PUSHED)]
    dtype: Dtype
    shape: Shape
    stride: Shape
    offset: Size
    conjugate: bool = False
    negative: bool = False


class Parcel(msgspec.Struct, frozen=True, array_like=True):
    """One push. push: what makes a second try the same push. storages: bytes of each."""

    push: Annotated[str, Meta(pattern=r"^[0-9a-f]{8,64}\Z")]
    storages: Annotated[tuple[Nbytes, ...], Meta(max_length=MAX_PUSHED)]
    parts: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=MAX_PUSHED)]

    @property
    def nbytes(self) -> int:
        """Of the storages, without padding."""
        return sum(self.storages)

    @property
    def body_nbytes(self) -> int:
        """What follows the head."""
        return sum(map(padded, self.storages))


_decoder = msgspec.msgpack.Decoder(Parcel)


def padded(nbytes: int) -> int:
    return -(-nbytes // ALIGN_NBYTES) * ALIGN_NBYTES


def encode_parcel(parcel: Parcel) -> bytes:
    """Raises ProtocolError: it is larger than a peer takes."""
    head = encode(parcel)
    if len(head) > MAX_PARCEL_HEADER_NBYTES:
        raise ProtocolError(f"{len(parcel.parts)} values in one push are too many; push fewer at once")
    return head


def decode_parcel(head: bytes, body_nbytes: int | None = None) -> Parcel:
    """The parcel, in which every value lies inside its storage and every storage has a value.

    body_nbytes: announced for the storages; None: not known here.

    Raises:
        ProtocolError: it is malformed, or a size, stride, offset or sum is not what it must be.
    """
    if len(head) > MAX_PARCEL_HEADER_NBYTES:
        raise ProtocolError(f"the head has {len(head)} bytes; the limit is {MAX_PARCEL_HEADER_NBYTES}")
    try:
        parcel = _decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed parcel: {error}") from None
    if parcel.nbytes > MAX_BLOB_NBYTES:
        raise ProtocolError(f"a parcel of {parcel.nbytes} bytes; the limit is {MAX_BLOB_NBYTES}")
    if body_nbytes is not None and parcel.body_nbytes != body_nbytes:
        raise ProtocolError(f"{body_nbytes} bytes for storages of {parcel.body_nbytes}")
    for part in parcel.parts:
        _check(part, parcel.storages)
    if len({part.name for part in parcel.parts}) != len(parcel.parts):
        raise ProtocolError("a parcel names a value twice")
    if {part.storage for part in parcel.parts} != set(range(len(parcel.storages))):
        raise ProtocolError("a parcel holds a storage without a value")
    return parcel


def _check(part: Part, storages: tuple[int, ...]) -> None:
    what = f"value {part.name} in a parcel"
    itemsize = ELEMENT_NBYTES.get(part.dtype)
    if itemsize is None:
        raise ProtocolError(f"{what}: there is no dtype {part.dtype!r}")
    if part.conjugate and not part.dtype.startswith("complex"):
        raise ProtocolError(f"{what}: a {part.dtype} cannot be conjugated")
    if part.storage >= len(storages):
        raise ProtocolError(f"{what}: storage {part.storage} of {len(storages)}")
    if len(part.shape) != len(part.stride):
        raise ProtocolError(f"{what}: {len(part.shape)} sizes with {len(part.stride)} strides")
    numel = 1
    for size in part.shape:
        numel *= size
        if numel > MAX_NUMEL:
            raise ProtocolError(f"{what}: shape {list(part.shape)} has more than {MAX_NUMEL} elements")
    last = part.offset + sum((n - 1) * step for n, step in zip(part.shape, part.stride, strict=True))
    available = storages[part.storage] // itemsize
    if numel and last >= available:
        raise ProtocolError(f"{what}: reaches beyond its storage of {storages[part.storage]} bytes")
