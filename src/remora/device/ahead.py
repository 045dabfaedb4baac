"""Downloads that are about to be asked for one by one, several to a round trip.

Who knows what comes next (a model that moves to the CPU, torch.save, safetensors) says so with `expect`. What has
come early is used only while nothing was recorded since: a write would make it stale.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

import torch

from remora.device.tensor import RemoraTensor

BATCH_NBYTES = 2 << 20  # of values in one round trip: a large one is worth its own
MAX_LOOKED_AT = 256  # values that did not fit, in one search
MAX_EXPECTED = 100_000

_thread = threading.local()  # one program order a thread
# By the id of a tensor's value; the weak reference says whether that value is still meant.
Expected = dict[int, weakref.ref[RemoraTensor]]
Arrived = dict[int, tuple[weakref.ref[RemoraTensor], int, torch.Tensor]]


def expect(tensors: Iterable[RemoraTensor]) -> None:
    """These will be downloaded soon, in this order; nothing happens if they are not."""
    expected: Expected = _thread.__dict__.setdefault("expected", {})
    if len(expected) > MAX_EXPECTED:
        expected.clear()
    expected.update((id(tensor._value), weakref.ref(tensor)) for tensor in tensors)


def company(tensor: RemoraTensor) -> list[RemoraTensor]:
    """What to download together with an expected tensor; nothing if it was not expected."""
    expected: Expected = _thread.__dict__.get("expected", {})
    value = tensor._value
    meant = expected.pop(id(value), _nobody)()
    if getattr(meant, "_value", None) is not value:  # dead, or moved to another device
        return []
    found, nbytes, looked_at = [], value.meta.nbytes, 0
    for key, reference in list(expected.items()):
        other = reference()
        if id(getattr(other, "_value", None)) != key or other._value.home is not value.home:
            del expected[key]  # moved, or of a session that has ended
        elif nbytes + other._value.meta.nbytes <= BATCH_NBYTES:
            del expected[key]
            found.append(other)
            nbytes += other._value.meta.nbytes
        else:
            looked_at += 1
            if looked_at > MAX_LOOKED_AT:
                break
    return found


def _nobody() -> None:
    return None


def keep(tensor: RemoraTensor, local: torch.Tensor, ops: int) -> None:
    """Keeps what came early. ops: how many had been recorded."""
    arrived: Arrived = _thread.__dict__.setdefault("arrived", {})
    arrived[id(tensor._value)] = weakref.ref(tensor), ops, local


def take(tensor: RemoraTensor, ops: int) -> torch.Tensor | None:
    """What came early, if it still holds; once."""
    arrived: Arrived | None = _thread.__dict__.get("arrived")
    if not arrived:
        return None
    reference, at, local = arrived.pop(id(tensor._value), (_nobody, ops, None))
    if at != ops:
        arrived.clear()
        return None
    meant = reference()
    return local if getattr(meant, "_value", None) is tensor._value else None
