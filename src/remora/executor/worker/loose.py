"""Kernels that PyTorch has not, for one new token.

`append` writes what is new to a cache; where that is, and how long, it reads from a table on the device (`WIDTH`
numbers a row), so that one graph serves all lengths. It only moves bits, so exact sessions have it too. The others are
for sessions that asked for `exact=False`, since they sum in another order than PyTorch's: `attend` appends a token's
keys and values and attends over them, `linear` reads a matrix once, at memory's rate. They are written in Triton,
which comes with PyTorch for GPUs.
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

WIDTH = 4  # of a table: address of a cache, rows that fit into it, rows that are there before; 16 bytes align rows
DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})
TOLERANCE = {torch.bfloat16: 2**-5, torch.float16: 2**-7, torch.float32: 2**-12}
"""Of the largest element, how far one may be from what PyTorch's kernels give for the same inputs."""
MAX_HEAD = 256

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]
"""(queries [B, H * G, 1, D], new keys, new values [B, H, 1, D], rows of a table: of keys, of values, scale) to
[B, H * G, 1, D]."""
Append = Callable[[torch.Tensor, torch.Tensor, int], None]
"""(what is new, row of a table, dimension along which the cache grows)."""
Linear = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


Need = tuple[Any, ...]
"""A kernel by its name, and (dtype, shape, strides) of what it takes: queries, new keys and values; a row, a matrix;
what is new, and then along which dimension."""


class Kernels:
    """What a device has in place of PyTorch's own. compiling: whether a kernel is to be compiled before it can run,
    which is done on a thread of its own: nobody waits."""

    def __init__(
        self,
        device: torch.device,
        append: Append,
        attend: Attention,
        linear: Linear,
        compiling: bool = True,
    ) -> None:
        self.device, self.append, self.attend, self.linear = device, append, attend, linear
        self._compiling = compiling
        self._ready: set[Need] = set()
        self._broken: set[Need] = set()
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

    def broken(self, needs: Collection[Need]) -> bool:
        """Whether one of them will never run."""
        return not self._broken.isdisjoint(needs)

    def _compile(self) -> None:
        with torch.inference_mode():
            while True:
                need = self._queue.get()
                try:
                    self._run(need)
                except Exception as error:
                    print(f"remora: kernel {need} cannot be compiled: {error}", file=sys.stderr)
                    self._broken.add(need)
                    continue
                self._ready.add(need)

    def _run(self, need: Need) -> None:
        name, *kinds = need
        dim = kinds.pop() if name == "append" else 2
        given = [
            torch.empty_strided(shape, strides, dtype=dtype, device=self.device).zero_()
            for dtype, shape, strides in kinds
        ]
        if name == "linear":
            self.linear(given[0], given[1])
            return
        new = given[-1]
        caches = torch.zeros(2, *new.shape, dtype=new.dtype, device=self.device)
        numbers = [[cache.data_ptr(), new.shape[dim], 0, 0] for cache in caches]
        rows = torch.tensor(numbers).to(
            self.device, non_blocking=True
        )  # elsewhere, waiting may be forbidden just now
        if name == "append":
            self.append(new, rows[0], dim)
        else:
            self.attend(given[0], given[1], new, rows, None)


def kernels_of(device: torch.device) -> Kernels | None:
    """None: there are none for this device."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from remora.executor.worker import loose_triton

    return Kernels(device, loose_triton.append, loose_triton.attend, loose_triton.linear)


def appendable(new: Any, past: Any, dim: int) -> bool:
    """Whether `append` can make a cache longer: all of one kind, and no row narrower than attention's kernels like."""
    tensors = (new, past)
    if not all(isinstance(tensor, torch.Tensor) and tensor.dim() == past.dim() for tensor in tensors):
        return False
    n = new.dim()
    at = dim + n if dim < 0 else dim
    if not 0 <= at < n - 1 or new.shape[-1] < 2 or not (new.numel() and past.numel()):
        return False
    if any(tensor.is_conj() or tensor.is_neg() or tensor.is_complex() for tensor in tensors):
        return False
    return new.dtype is past.dtype and all(
        a == b for d, (a, b) in enumerate(zip(new.shape, past.shape, strict=True)) if d != at
    )


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
