"""Memory of an NVIDIA GPU that other processes of the host open (CUDA IPC), by the runtime that PyTorch has loaded.

Made with cudaMalloc and not by PyTorch's allocator: there, one allocation holds many tensors, and a handle opens it
whole; expandable segments, which cannot be lent that way everywhere, do not matter either.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from remora.executor.worker.exports import CannotExport, CannotOpen, Export

_GRAIN_NBYTES = 2 << 20  # the driver puts several smaller allocations into one, and a handle opens that one
_LAZY_PEER_ACCESS = 1
_ANY_DIRECTION = 4
_OUT_OF_MEMORY = 2


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_byte * 64),)


class CudaError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class CudaRuntime:
    """The few calls that are needed. Each raises CudaError, and leaves no error behind for PyTorch to find."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_loaded_runtime())
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        self._library.cudaGetErrorString.argtypes = (ctypes.c_int,)
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        for name, arguments in {
            "cudaMalloc": (ctypes.POINTER(pointer), size),
            "cudaFree": (pointer,),
            "cudaMemcpyAsync": (pointer, pointer, size, ctypes.c_int, pointer),
            "cudaIpcGetMemHandle": (ctypes.POINTER(_Handle), pointer),
            "cudaIpcOpenMemHandle": (ctypes.POINTER(pointer), _Handle, ctypes.c_uint),
            "cudaIpcCloseMemHandle": (pointer,),
        }.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            self._library.cudaGetLastError()
            text = self._library.cudaGetErrorString(code).decode(errors="replace")
            raise CudaError(code, f"{name}: CUDA error {code}, {text}")


class _Raw:
    """Memory that PyTorch looks at without owning it."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 2,
        }


class CudaMemory:
    """One GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.kind = f"cuda {_process_namespace()}"
        self._runtime: CudaRuntime | None = None
        self._addresses: dict[bytes, int] = {}

    def make(self, nbytes: int) -> Export:
        whole_nbytes = -(-nbytes // _GRAIN_NBYTES) * _GRAIN_NBYTES
        with torch.cuda.device(self._device):
            address = self._allocated(whole_nbytes)
            try:
                handle = _Handle()
                self._cuda.call("cudaIpcGetMemHandle", ctypes.byref(handle), address)
                tensor = self._looked_at(address, whole_nbytes)
            except BaseException as error:
                self._cuda.call("cudaFree", address)
                if isinstance(error, CudaError):
                    raise CannotExport(str(error), lasting=True) from None
                raise
        self._addresses[bytes(handle)] = address
        return Export(tensor, bytes(handle))

    def settle(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()

    def free(self, export: Export) -> None:
        with torch.cuda.device(self._device):
            self._cuda.call("cudaFree", self._addresses.pop(export.handle))

    def read(self, handle: bytes, targets: Sequence[tuple[int, torch.Tensor]]) -> None:
        if len(handle) != ctypes.sizeof(_Handle):
            raise CannotOpen(f"a handle has {ctypes.sizeof(_Handle)} bytes, not {len(handle)}")
        opened = ctypes.c_void_p()
        with torch.cuda.device(self._device):
            try:
                cuda = self._cuda
                cuda.call(
                    "cudaIpcOpenMemHandle",
                    ctypes.byref(opened),
                    _Handle.from_buffer_copy(handle),
                    _LAZY_PEER_ACCESS,
                )
            except (CudaError, CannotExport) as error:
                raise CannotOpen(str(error)) from None
            stream = torch.cuda.current_stream(self._device)
            try:
                for at, target in targets:
                    cuda.call(
                        "cudaMemcpyAsync",
                        target.data_ptr(),
                        (opened.value or 0) + at,
                        target.numel(),
                        _ANY_DIRECTION,
                        stream.cuda_stream,
                    )
            except CudaError as error:
                raise CannotOpen(str(error)) from None
            finally:
                stream.synchronize()  # before it is closed, or the other process writes to it
                cuda.call("cudaIpcCloseMemHandle", opened)

    def _looked_at(self, address: int, nbytes: int) -> torch.Tensor:
        tensor = torch.as_tensor(_Raw(address, nbytes), device=self._device)
        if tensor.data_ptr() != address:
            raise CannotExport("PyTorch copies memory that it should look at", lasting=True)
        return tensor

    def _allocated(self, nbytes: int) -> int:
        address = ctypes.c_void_p()
        try:
            self._cuda.call("cudaMalloc", ctypes.byref(address), nbytes)
        except CudaError as error:
            if error.code != _OUT_OF_MEMORY:
                raise CannotExport(str(error), lasting=True) from None
            torch.cuda.empty_cache()
            try:
                self._cuda.call("cudaMalloc", ctypes.byref(address), nbytes)
            except CudaError as again:
                raise CannotExport(str(again), lasting=False) from None
        return address.value or 0

    @property
    def _cuda(self) -> CudaRuntime:
        if self._runtime is None:
            try:
                self._runtime = CudaRuntime()
            except (OSError, AttributeError) as error:
                raise CannotExport(f"PyTorch's CUDA runtime: {error}", lasting=True) from None
        return self._runtime


def _process_namespace() -> int:
    """A handle names its process by a number, which means another process in another namespace; 0: unknown."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _loaded_runtime() -> str:
    """Path of the library that this process uses already. Raises OSError."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line[line.find("/") :] if "/" in line else ""
        if Path(path).name.startswith("libcudart.so"):
            return path
    raise OSError("it is not loaded")
