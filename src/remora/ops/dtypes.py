"""Names of dtypes on the wire, and bytes of tensors."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from remora.errors import NotSupported

BY_NAME: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.uint16, torch.uint32, torch.uint64, torch.complex32),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    )
}
NAMES = {dtype: name for name, dtype in BY_NAME.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """Raises NotSupported for dtypes that do not travel (quantised ones)."""
    name = NAMES.get(dtype)
    if name is None:
        raise NotSupported(f"tensors of dtype {dtype} cannot travel to an executor")
    return name


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy; valid while the tensor lives."""
    nbytes = tensor.numel() * tensor.element_size()
    if not nbytes:
        return memoryview(b"")
    return memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())).cast("B")


def tensor_from(data: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A CPU tensor over C order bytes; shares memory with a bytearray, copies bytes."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    writable = data if isinstance(data, bytearray) else bytearray(data)
    return torch.frombuffer(writable, dtype=dtype).reshape(shape)
