"""CUDA graphs: a few rows recorded once and launched as one. A CPU has none: `recorder_of` gives None."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

Body = Callable[[], list[torch.Tensor]]


class Recorder(Protocol):
    """kind: the type of device whose memory graphs read and write."""

    kind: str

    def pool(self) -> Any:
        """Memory that the graphs of one program share: each may overwrite what the others have in it, so they are
        replayed in the order of their recording."""

    def record(self, body: Body, pool: Any) -> tuple[Callable[[], None], list[torch.Tensor], int]:
        """What replays the kernels that `body` launches, the tensors that it returned, and the bytes that the pool
        grew by. Nothing has been computed yet. Raises what the body raises, or what could not be recorded."""

    def strict(self, on: bool) -> None:
        """While it is on, a kernel that waits for the device raises."""

    def give_back(self) -> None:
        """Frees the memory of pools that nothing uses."""


def recorder_of(device: torch.device) -> Recorder | None:
    return CudaRecorder(device) if device.type == "cuda" else None


class CudaRecorder:
    kind = "cuda"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = None
        self._warned = False

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def record(self, body: Body, pool: Any) -> tuple[Callable[[], None], list[torch.Tensor], int]:
        if self._stream is None:
            self._stream = self._prepared()
        graph = torch.cuda.CUDAGraph()
        reserved_nbytes = torch.cuda.memory_reserved(self.device)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        collecting = gc.isenabled()
        gc.disable()  # what is collected may ask the device for something that a recording forbids
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    outputs = body()
                except BaseException:
                    with contextlib.suppress(Exception):
                        graph.capture_end()
                    raise
                graph.capture_end()
        except BaseException:
            self._after_failure()
            raise
        finally:
            if collecting:
                gc.enable()
        return (
            partial(torch._C._CUDAGraph.replay, graph),
            outputs,
            torch.cuda.memory_reserved(self.device) - reserved_nbytes,
        )

    def strict(self, on: bool) -> None:
        if not self._warned:  # it says once that it is a prototype
            self._warned = True
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch._C._cuda_set_sync_debug_mode(2)
        torch._C._cuda_set_sync_debug_mode(2 if on else 0)

    def give_back(self) -> None:
        torch.cuda.empty_cache()

    def _prepared(self) -> Any:
        """A stream to record on. The matrix libraries' workspaces for it are made here, outside of any pool."""
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            for dtype in (torch.bfloat16, torch.float32):
                square = torch.ones(16, 16, dtype=dtype, device=self.device)
                torch.addmm(square[0], square, square) + square @ square
        stream.synchronize()
        return stream

    def _after_failure(self) -> None:
        """A recording that failed leaves the default generator believing that one is under way; the next one that
        ends well tells it otherwise."""
        with torch.cuda.stream(self._stream):
            nothing = torch.cuda.CUDAGraph()
            nothing.capture_begin(capture_error_mode="thread_local")
            torch.zeros(1, device=self.device)
            nothing.capture_end()
