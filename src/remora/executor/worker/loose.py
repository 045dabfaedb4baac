"""Kernels of sessions that asked for `exact=False`: other orders of summation than PyTorch's, for one new token.

`attend` appends a token's keys and values to their caches and attends over them; where the caches are, and how long,
it reads from a table on the device (`WIDTH` numbers a row), so that one graph serves all lengths. `linear` reads a
matrix once, at memory's rate. They are written in Triton, which comes with PyTorch for GPUs.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Collection
from queue import SimpleQueue
from typing import Any

import torch

# legend: B batch, H heads of keys, G heads of queries to each, N rows of a cache, D head dimension, S splits

WIDTH = 5  # of a table: addresses of keys and values, rows that fit into each, rows that are there before
DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})
TOLERANCE = {torch.bfloat16: 2**-5, torch.float16: 2**-7, torch.float32: 2**-12}
"""Of the largest element, how far one may be from what PyTorch's kernels give for the same inputs."""
MAX_HEAD = 256

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]
"""(queries [B, H * G, 1, D], new keys, new values [B, H, 1, D], row of a table, scale) to [B, H * G, 1, D]."""
Linear = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


Need = tuple[Any, ...]
"""A kernel by its name, and (dtype, shape, strides) of what it takes: queries, new keys and values; a row, a matrix."""


class Kernels:
    """What a device has in place of PyTorch's own. compiling: whether a kernel is to be compiled before it can run,
    which is done on a thread of its own: nobody waits."""

    def __init__(
        self, device: torch.device, attend: Attention, linear: Linear, compiling: bool = True
    ) -> None:
        self.device, self.attend, self.linear = device, attend, linear
        self._compiling = compiling
        self._ready: set[Need] = set()
        self._asked: set[Need] = set()
        self._queue: SimpleQueue[Need] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def ready(self, needs: Collection[Need]) -> bool:
        """Whether all can run at once; those that cannot will be able to some time later."""
        if not self._compiling or self._ready.issuperset(needs):
            return True
        for need in set(needs) - self._asked:
            self._asked.add(need)
            self._queue.put(need)
        if self._thread is None:
            self._thread = threading.Thread(target=self._compile, name="remora-kernels", daemon=True)
            self._thread.start()
        return False

    def _compile(self) -> None:
        with torch.inference_mode():
            while True:
                need = self._queue.get()
                try:
                    self._run(need)
                except Exception as error:
                    print(f"remora: kernel {need} cannot be compiled: {error}", file=sys.stderr)
                    continue  # so programs that need it stay as they are
                self._ready.add(need)

    def _run(self, need: Need) -> None:
        name, *kinds = need
        given = [
            torch.empty_strided(shape, strides, dtype=dtype, device=self.device).zero_()
            for dtype, shape, strides in kinds
        ]
        if name == "linear":
            self.linear(given[0], given[1])
            return
        caches = torch.zeros(2, *given[1].shape, dtype=given[1].dtype, device=self.device)
        numbers = [caches[0].data_ptr(), caches[1].data_ptr(), 1, 1, 0]
        row = torch.tensor(numbers).to(
            self.device, non_blocking=True
        )  # elsewhere, waiting may be forbidden just now
        self.attend(given[0], given[1], given[2], row, None)


def kernels_of(device: torch.device) -> Kernels | None:
    """None: there are none for this device."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from remora.executor.worker import loose_triton

    return Kernels(device, loose_triton.attend, loose_triton.linear)


def fits(query: Any, new_keys: Any, new_values: Any, keys: Any, values: Any) -> bool:
    """Whether `attend` can do it: one new token, all of one kind, the caches as they are when they grow."""
    tensors = (query, new_keys, new_values, keys, values)
    if not all(isinstance(tensor, torch.Tensor) and tensor.dim() == 4 for tensor in tensors):
        return False
    b, h, one, d = new_keys.shape
    if one != 1 or new_values.shape != new_keys.shape or query.shape[0] != b or query.shape[2:] != (1, d):
        return False
    if h == 0 or query.shape[1] % h or not 2 <= d <= MAX_HEAD or new_keys.dtype not in DTYPES:
        return False
    n = keys.shape[2]
    alike = all(tensor.dtype is new_keys.dtype for tensor in tensors)
    return bool(alike and n and keys.shape == values.shape == (b, h, n, d))


def apart(made: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How far a tensor is from what was expected, of what it may be: 1 is as far as it may. Waits for nothing."""
    made, wanted = made.float(), expected.float()
    same = (made == wanted) | (made.isnan() & wanted.isnan())
    away = torch.where(same, 0.0, (made - wanted).abs()).amax()
    most = torch.where(wanted.isfinite(), wanted.abs(), 0.0).amax()
    return away / (most * TOLERANCE[expected.dtype] + torch.finfo(torch.float32).tiny)
