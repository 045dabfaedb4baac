"""What an op allows: whether its kernels may be launched from a CUDA graph, and whether its row keeps its place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import torch

from remora.executor.worker.kernels import grows
from remora.ir.node import Const, Node
from remora.ops.schema import Place, resolve, traits

# Kernels that are chosen by length, wait for the device, keep state on the host, or live in libraries that do.
_NEVER = re.compile(
    r".*(attention|segment|nested|ctc|rnn|lstm|gru|unique|nonzero|masked_select|sparse|quantiz|fft)"
    r"|_?linalg_|(cholesky|lu|svd|eig|symeig|qr|geqrf|orgqr|ormqr|lstsq|inverse|solve|det|logdet|slogdet)(_|$)"
    r"|(item|equal|histogram|histc|bincount|allclose|tensor_split|repeat_interleave|combinations|embedding_bag)(_|$)"
)
# Ops whose results do not depend on how their inputs are aligned; those that PyTorch tags as pointwise are others.
_ANY_ALIGNMENT = frozenset(
    {"clone", "_to_copy", "cat", "stack", "embedding", "index", "index_select", "gather", "isin", "where"}
    | {
        "contiguous",
        "reshape",
        "repeat",
        "flip",
        "roll",
        "copy",
        "constant_pad_nd",
        "one_hot",
        "tril",
        "triu",
    }
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What holds for a row whatever its inputs are.

    capturable: a graph may hold it, as far as the op tells. fence: it stays behind all before it and before all
    behind it: it writes, draws, or may do anything. written: the arguments that it writes, counted as an
    instruction's reads are: positional, then keywords. launches: it runs a kernel, and does not only look at memory
    in another way. any_alignment: the same bits come out wherever the inputs lie.
    """

    capturable: bool
    fence: bool
    written: tuple[int, ...]
    launches: bool
    any_alignment: bool


UNKNOWN = Judgement(False, True, (), True, False)  # an op that there is not: its instruction says so


@lru_cache(maxsize=1 << 14)
def judge(node: Node) -> Judgement:
    try:
        op = resolve(node.op)
    except LookupError:
        return UNKNOWN
    known = traits(op)
    base = op._schema.name.split("::")[1]
    values = [
        arg.value if isinstance(arg, Const) else ... for arg in node.args
    ]  # as far as the template fixes them
    written = _written_places(node, known.writes(values))
    fence = (
        op.namespace != "aten"
        or grows(op)
        or not known.returns_tensor
        or known.draws(values)
        or bool(written)
    )
    capturable = (
        not fence
        and not (known.dynamic_shape or known.metadata_only_write or known.returns_scalar)
        and _NEVER.match(base) is None
    )
    pointwise = torch.Tag.pointwise in op.tags
    return Judgement(capturable, fence, written, not known.views, pointwise or base in _ANY_ALIGNMENT)


def _written_places(node: Node, places: tuple[Place, ...]) -> tuple[int, ...]:
    names = [name for name, _ in node.kwargs]
    found = []
    for place in places:
        if isinstance(place, int):
            found.append(place)
        elif place in names:
            found.append(len(node.args) + names.index(place))
    return tuple(place for place in found if place < len(node.args) + len(names))
