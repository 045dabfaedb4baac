"""Which tensors share memory, told by numbers that look like addresses.

The memory is on an executor. Code that compares addresses gets right answers from these; they are given to such
code only (`_COMPARERS`), since nothing can be read there.
"""

from __future__ import annotations

import sys
import threading
import weakref

from remora.capture.value import Value
from remora.device.tensor import RemoraTensor
from remora.errors import NotSupported

_ALIGNMENT = 512
_FIRST = 1 << 60  # no processor maps it: whoever reads there anyway is stopped at once

# Modules whose functions compare what data_ptr() gives and read nothing there.
_COMPARERS = frozenset(
    {"torch.serialization", "torch.nn.modules.rnn", "torch.autograd.graph"}
    | {"torch.distributed.utils", "safetensors.torch", "transformers.modeling_utils"}
    | {"transformers.pytorch_utils", "transformers.trainer", "transformers.integrations.moe"}
    | {"accelerate.accelerator", "accelerate.big_modeling", "accelerate.hooks", "accelerate.utils.modeling"}
    | {"peft.tuners.tuners_utils", "peft.utils.save_and_load", "huggingface_hub.serialization._torch"}
)

_lock = threading.Lock()
_next = _FIRST
_of_roots: weakref.WeakKeyDictionary[Value, int] = weakref.WeakKeyDictionary()


def new_address(nbytes: int) -> int:
    """The first of `nbytes` that nothing else ever has."""
    global _next
    with _lock:
        address = _next
        _next += (nbytes // _ALIGNMENT + 1) * _ALIGNMENT
    return address


def address_of_root(root: Value, nbytes: int) -> int:
    found = _of_roots.get(root)
    if found is None:
        found = _of_roots.setdefault(root, new_address(nbytes))
    return found


def set_address(root: Value, address: int) -> None:
    _of_roots[root] = address


def root_of(tensor: RemoraTensor) -> Value:
    """The value that owns the memory in which the tensor lies."""
    of_data = tensor.__dict__.get("_root")  # the tensor took over another one's memory
    if of_data is not None:
        return of_data
    if not tensor._is_view():
        return tensor._value
    base = tensor._base
    assert base is not None
    at = tensor._value.segment, tensor._value.code
    for until, root in base.__dict__.get("_roots_before", ()):
        if at < until:  # made before the base took over other memory
            return root() or tensor._value
    return root_of(base)


def may_compare() -> bool:
    """Whether who asks for an address is known to compare it and to read nothing there."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__") == "torch.storage" and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_globals.get("__name__") in _COMPARERS


def refuse_address(what: str) -> NotSupported:
    return NotSupported(
        f"{what} of a remora tensor: its memory is on an executor and has no address here, so nothing that "
        "needs a pointer (ctypes, Triton, numpy) can use it; use .cpu() for a local copy. "
        "Tensors that share memory have equal .untyped_storage()._cdata"
    )
