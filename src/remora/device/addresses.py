"""Which tensors share memory, told by numbers that look like addresses.

The memory is on an executor. Code that compares addresses gets right answers from these; they are given to such
code only (`_COMPARERS`), since nothing can be read there.
"""

from __future__ import annotations

import itertools
import sys

from remora.capture.value import Value
from remora.device.tensor import RemoraTensor
from remora.errors import NotSupported
from remora.ops.layout import end_of

_FIRST = 1 << 120  # no processor maps it, and nothing that takes 64 bits takes it

# Modules whose functions compare what data_ptr() gives and read nothing there.
_COMPARERS = frozenset(
    {"torch.serialization", "torch.nn.modules.rnn", "torch.autograd.graph"}
    | {"torch.distributed.utils", "safetensors.torch", "transformers.modeling_utils"}
    | {"transformers.pytorch_utils", "transformers.trainer", "transformers.integrations.moe"}
    | {"accelerate.accelerator", "accelerate.big_modeling", "accelerate.hooks", "accelerate.utils.modeling"}
    | {"peft.tuners.tuners_utils", "peft.utils.save_and_load", "huggingface_hub.serialization._torch"}
)

_SPAN = 1 << 48  # more than any value has bytes
_loaded = itertools.count(1)
# By a root's first name, the bytes of its memory where they have become more than the root has.
_grown: dict[tuple[int, int], int] = {}


def address_of_root(root: Value) -> int:
    """No two values have addresses less than _SPAN apart: names are never used twice."""
    segment, code = _born(root)
    return _FIRST + (segment << 32 | code) * _SPAN


def address_of_bytes() -> int:
    """For what has no value yet; below all that have."""
    return _FIRST - next(_loaded) * _SPAN


def root_of(tensor: RemoraTensor) -> Value:
    """The value that owns the memory in which the tensor lies."""
    owner = _owner(tensor)
    return owner.__dict__.get("_root", owner._value)  # type: ignore[no-any-return]


def reshaped(tensor: RemoraTensor, value: Value) -> None:
    """Notes that a tensor is to be another view of its own memory, which grows if the view reaches beyond it."""
    owner = _owner(tensor)
    root = owner.__dict__.get("_root", owner._value)
    if owner is tensor:
        tensor._root = root
    if _end(value) > nbytes_of(root):
        _grown[_born(root)] = _end(value)


def nbytes_of(root: Value) -> int:
    """How much memory a root value has."""
    return max(_end(root), _grown.get(_born(root), 0))


def _owner(tensor: RemoraTensor) -> RemoraTensor:
    """Itself or one of those that it is a view of: whose memory was made, or taken over, for it."""
    while "_root" not in tensor.__dict__ and tensor._is_view():
        base: RemoraTensor = tensor._base  # type: ignore[assignment]
        at = _born(tensor._value)
        if at < base.__dict__.get("_since", at):  # made before the base took over other memory
            return tensor
        tensor = base
    return tensor


def _born(value: Value) -> tuple[int, int]:
    """The name under which it was recorded, whatever it is called since."""
    return value.born or (value.segment, value.code)


def _end(value: Value) -> int:
    """Bytes from the start of the memory to the last element."""
    meta = value.meta
    return end_of(meta.shape, meta.stride, meta.offset) * meta.dtype.itemsize  # type: ignore[no-any-return]


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
