"""Downloads that are about to be asked for one by one, several to a round trip.

Who knows what comes next (a model that moves to the CPU, torch.save, safetensors) says so with `expect`. A program
that branches may go on to read its result: what is small comes with the branch the first time, and from then on where
it was used. What has come early is used only while nothing was recorded since: a write would make it stale.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterable

import torch

from remora.capture.recorder import Recorder, Step
from remora.capture.value import Value
from remora.device.shadow import EXACT, known
from remora.device.tensor import RemoraTensor

BATCH_NBYTES = 2 << 20  # of values in one round trip: a large one is worth its own
MAX_LOOKED_AT = 256  # values that did not fit, in one search
MAX_EXPECTED = 100_000
MAX_GUESSED, GUESSED_NBYTES = 4, 4096  # values that come with a branch, and bytes of each

_thread = threading.local()  # one program order a thread
# By the id of a tensor's value; the weak reference says whether that value is still meant.
Expected = dict[int, weakref.ref[RemoraTensor]]
# By name: how many ops had been recorded, the tensor, the row behind which it was guessed.
Arrived = dict[tuple[int, int, int], tuple[int, torch.Tensor, Step | None]]


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


def guess(recorder: Recorder, value: Value) -> list[Value]:
    """What may be asked for right behind a branch on a number: integers that its segment has made, the last first."""
    with recorder.lock:
        step = recorder.step
        if step.alone or step.node is None or not recorder.reads_ahead or value.meta.shape.numel() != 1:
            return []
        step.alone = True  # until something is used
        small = (other for other in recorder.in_use() if other is not value and _is_small(other))
        return list(itertools.islice(small, MAX_GUESSED))


def _is_small(value: Value) -> bool:
    meta = value.meta
    return meta is not None and meta.dtype in EXACT and meta.nbytes <= GUESSED_NBYTES and known(value) is None


def keep(value: Value, local: torch.Tensor, ops: int, step: Step | None = None) -> None:
    """Keeps what came early. ops: how many had been recorded. step: the last of these, if it was guessed."""
    arrived: Arrived = _thread.__dict__.setdefault("arrived", {})
    arrived[value.name] = ops, local, step


def take(value: Value, ops: int) -> torch.Tensor | None:
    """What came early, if it still holds; once."""
    arrived: Arrived | None = _thread.__dict__.get("arrived")
    if not arrived:
        return None
    at, local, step = arrived.pop(value.name, (ops, None, None))
    if at != ops:
        arrived.clear()
        return None
    if step is not None:
        step.alone = False
    return local
