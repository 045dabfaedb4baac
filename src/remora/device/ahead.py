"""Downloads that are about to be asked for one by one, several to a round trip.

Who knows what comes next (a model that moves to the CPU, torch.save, safetensors) says so with `expect`. What has
come early is used only while nothing was recorded since: a write would make it stale.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

import torch

from remora.capture.value import Value

BATCH_NBYTES = 2 << 20  # of values in one round trip: a large one is worth its own
MAX_LOOKED_AT = 256  # values that did not fit, in one search
MAX_EXPECTED = 100_000

_thread = threading.local()  # one program order a thread


def expect(values: Iterable[Value]) -> None:
    """These will be downloaded soon, in this order; nothing happens if they are not."""
    expected: dict[int, weakref.ref[Value]] = _thread.__dict__.setdefault("expected", {})
    if len(expected) > MAX_EXPECTED:
        expected.clear()
    expected.update((id(value), weakref.ref(value)) for value in values)


def company(value: Value) -> list[Value]:
    """What to download together with an expected value; nothing if it was not expected."""
    expected: dict[int, weakref.ref[Value]] = _thread.__dict__.get("expected", {})
    reference = expected.pop(id(value), None)
    if reference is None or reference() is not value:
        return []
    found, nbytes, looked_at = [], value.meta.nbytes, 0
    for key, other in list(expected.items()):
        there = other()
        if there is None:
            del expected[key]
        elif nbytes + there.meta.nbytes <= BATCH_NBYTES:
            del expected[key]
            found.append(there)
            nbytes += there.meta.nbytes
        else:
            looked_at += 1
            if looked_at > MAX_LOOKED_AT:
                break
    return found


def keep(value: Value, tensor: torch.Tensor, ops: int) -> None:
    """Keeps what came early. ops: how many had been recorded."""
    arrived = _thread.__dict__.setdefault("arrived", weakref.WeakKeyDictionary())
    arrived[value] = ops, tensor


def take(value: Value, ops: int) -> torch.Tensor | None:
    """What came early, if it still holds; once."""
    arrived = _thread.__dict__.get("arrived")
    if not arrived:
        return None
    at, tensor = arrived.pop(value, (None, None))
    if at is not None and at != ops:
        arrived.clear()
        return None
    return tensor  # type: ignore[no-any-return]
