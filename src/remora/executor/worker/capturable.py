"""What an op allows: whether its kernels may be launched from a CUDA graph, and whether its row keeps its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from remora.executor.worker.kernels import grows
from remora.ir.node import Const, Node
from remora.ops.schema import OpTraits, resolve, traits

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


def capturable(node: Node) -> bool:
    """Whether a graph may hold the row, as far as the op tells. Raises LookupError if there is no such op."""
    op = resolve(node.op)
    known = traits(op)
    base = op._schema.name.split("::")[1]
    return (
        op.namespace == "aten"
        and known.returns_tensor
        and not (known.dynamic_shape or known.metadata_only_write or known.returns_scalar)
        and not fence(node)
        and _NEVER.match(base) is None
    )


def fence(node: Node) -> bool:
    """Whether the row stays behind all before it and before all behind it: it writes, draws, or may do anything."""
    op = resolve(node.op)
    known = traits(op)
    values = _constants(node)
    return (
        op.namespace != "aten"
        or grows(op)
        or not known.returns_tensor
        or known.draws(values)
        or bool(written_places(node, known))
    )


def written_places(node: Node, known: OpTraits) -> tuple[int, ...]:
    """Which arguments the row writes, counted as an instruction's reads are: positional, then keywords."""
    names = [name for name, _ in node.kwargs]
    places = []
    for place in known.writes(_constants(node)):
        if isinstance(place, int):
            places.append(place)
        elif place in names:
            places.append(len(node.args) + names.index(place))
    return tuple(place for place in places if place < len(node.args) + len(names))


def launches(node: Node) -> bool:
    """Whether the row runs a kernel: it does not only look at memory in another way."""
    return not traits(resolve(node.op)).views


def any_alignment(node: Node) -> bool:
    """Whether the same bits come out wherever the inputs lie."""
    op = resolve(node.op)
    return torch.Tag.pointwise in op.tags or op._schema.name.split("::")[1] in _ANY_ALIGNMENT


def _constants(node: Node) -> Sequence[Any]:
    """Positional arguments as far as the template fixes them."""
    return [arg.value if isinstance(arg, Const) else ... for arg in node.args]
