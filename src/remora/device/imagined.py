"""Values where nothing is computed: what is small and comes from small known numbers is computed here all the same.

Programs branch on such values: `generate` goes on until `unfinished_sequences` is all zeros. A value is known if the
client uploaded it and it is small, or if a row made it from known ones; of integers and booleans it is enough that one
input is known, and what is missing counts as zeros, or as a token of choice. Everything else is unknown, and is that
when it is read. A value is certain if nothing that it comes from was missing. Rows are taken in their order, so that
writes in place are seen through every view.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from remora.capture.recorder import Segment, Step
from remora.device.shadow import EXACT, MAX_FLOATS
from remora.ir.graph import Template
from remora.ir.node import Arg, Const, Hole, Items, Node, Ref, Slot, Symbol
from remora.ops.dtypes import BY_NAME, tensor_from
from remora.ops.schema import OpTraits, resolve, traits

MAX_NUMEL = 64 << 10  # of a tensor that is computed here
MAX_TEMPLATES = 4096  # whose rows are kept as they are computed
TOKENS = {torch.int32, torch.int64}
_UNSET = ("empty", "new_empty")

Key = tuple[int, int]
"""A value's name: segment, and row and output in one number (capture/value.py)."""


@dataclass(frozen=True, slots=True)
class Known:
    """A value that was computed here. Those that share memory share `cell`, which turns false with what is written."""

    tensor: torch.Tensor
    cell: list[bool]

    @property
    def certain(self) -> bool:
        return self.cell[0]


@dataclass(frozen=True, slots=True)
class _Row:
    node: Node
    op: Any
    traits: OpTraits
    inputs: tuple[Ref | Slot, ...]
    n_holes: int
    unset: bool


class Imagination:
    """The known values of one session, by name.

    Args:
        token: what wide integers count as that are missing: mostly they are tokens, and one of these ends a text.
    """

    def __init__(self, token: int = 0) -> None:
        self.token = token
        self._known: dict[Key, Known] = {}
        self._rows: dict[bytes, tuple[_Row, ...]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def uploaded(self, key: Key, dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> None:
        """The client has a value; `data`: its bytes, or nothing where they are not there."""
        kind, numel = BY_NAME[dtype], 1
        for n in shape:
            numel *= n
        if numel <= (MAX_NUMEL if kind in EXACT else MAX_FLOATS) and len(data) == numel * kind.itemsize:
            with torch.inference_mode(False):
                self._known[key] = Known(tensor_from(bytes(data), kind, shape), [True])

    def missing(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """What a value counts as that is not known."""
        return torch.full(tuple(shape), self.token if dtype in TOKENS else 0, dtype=dtype)

    def find(self, key: Key) -> Known | None:
        return self._known.get(key)

    def rename(self, found: Mapping[int, Known], names: Mapping[int, Key], alive: Collection[Key]) -> None:
        """What a segment made gets its names; what has died is forgotten.

        Args:
            found: by code, as `run` gave it. names: of the values that live on, by the code that they had.
        """
        for key in [key for key in self._known if key not in alive]:
            del self._known[key]
        for code, key in names.items():
            known = found.get(code)
            if known is not None:
                self._known[key] = known

    def run(self, segment: Segment) -> dict[int, Known]:
        """Computes what can be of a segment that was just cut. Returns the kept values that are known, by code."""
        slots = [self._known.get((value.segment, value.code)) for value in segment.slots]
        rows, steps = self._compiled(segment.captured.template), segment.step.path()
        made: dict[tuple[int, int], Known] = {}
        at = 0
        with torch.inference_mode(False), torch.no_grad():
            for number, (row, step) in enumerate(zip(rows, steps, strict=True)):
                holes, at = segment.holes[at : at + row.n_holes], at + row.n_holes
                inputs = [
                    slots[arg.index] if isinstance(arg, Slot) else made.get((arg.row, arg.out))
                    for arg in row.inputs
                ]
                if row.inputs and all(known is None for known in inputs):
                    continue
                for out, known in _computed(row, step, inputs, iter(holes), self.missing):
                    made[number, out] = known
        pairs = zip(segment.keep[::2], segment.keep[1::2], strict=True)
        codes = (value.code for value in segment.kept)
        return {code: made[pair] for code, pair in zip(codes, pairs, strict=True) if pair in made}

    def _compiled(self, template: Template) -> tuple[_Row, ...]:
        rows = self._rows.get(template.id)
        if rows is None:
            if len(self._rows) >= MAX_TEMPLATES:
                self._rows.clear()
            rows = self._rows[template.id] = tuple(map(_row, template.nodes))
        return rows


def _row(node: Node) -> _Row:
    op, flat = resolve(node.op), node.inputs()
    base = op._schema.name.split("::")[1]
    return _Row(
        node,
        op,
        traits(op),
        tuple(arg for arg in flat if isinstance(arg, Ref | Slot)),
        sum(isinstance(arg, Hole) for arg in flat),
        base.startswith(_UNSET),
    )


def _computed(
    row: _Row,
    step: Step,
    inputs: Sequence[Known | None],
    holes: Iterator[int | float],
    missing: Callable[[Sequence[int], torch.dtype], torch.Tensor],
) -> list[tuple[int, Known]]:
    """The outputs of a row of which something is known."""
    outcome, metas = step.outcome, step.metas or []
    targets = [] if outcome.is_view else [known for at in outcome.stale if (known := inputs[at]) is not None]
    worth = _worth(row, outcome, metas, inputs)
    if not (worth and all(known is not None and known.certain for known in inputs)):
        for target in targets:
            target.cell[0] = False
    if not worth:
        for target in targets:
            target.tensor.copy_(missing(target.tensor.shape, target.tensor.dtype))
        pairs = [(out, inputs[meta]) for out, meta in enumerate(outcome.outs) if isinstance(meta, int)]
        return [(out, known) for out, known in pairs if known is not None]
    tensors = [
        missing(meta.shape, meta.dtype) if known is None else known.tensor
        for known, meta in zip(inputs, metas, strict=True)
    ]
    given = iter(tensors)
    args = [_value(arg, given, holes) for arg in row.node.args]
    kwargs = {name: _value(arg, given, holes) for name, arg in row.node.kwargs}
    try:
        result = row.op(*args, **kwargs)
    except Exception:  # the layout of a tensor here may differ from the one that the program sees
        for target in targets:
            target.cell[0] = False
        return []
    if row.unset:
        result.zero_()
    cells = {known.tensor.untyped_storage().data_ptr(): known.cell for known in inputs if known is not None}
    certain = all(known is not None and known.certain for known in inputs)
    return [
        (out, Known(tensor, cells.get(tensor.untyped_storage().data_ptr()) or [certain]))
        for out, tensor in enumerate(result if isinstance(result, (list, tuple)) else [result])
        if isinstance(tensor, torch.Tensor) and tensor.numel() <= MAX_NUMEL
    ]


def _worth(row: _Row, outcome: Any, metas: Sequence[Any], inputs: Sequence[Known | None]) -> bool:
    """Whether a row is computed here."""
    if row.traits.random:
        return False
    fresh = [meta for meta in outcome.outs if meta is not None and not isinstance(meta, int)]
    if any(meta.shape.numel() > MAX_NUMEL for meta in (*metas, *fresh) if meta is not None):
        return False
    if all(known is not None for known in inputs):
        return True
    if outcome.is_view:
        return inputs[0] is not None
    if any(inputs[at] is None for at in outcome.stale):
        return False  # what is written is unknown, and stays so
    made = [*fresh, *(metas[meta] for meta in outcome.outs if isinstance(meta, int))]
    return not outcome.unknown and all(meta.dtype in EXACT for meta in made)


def _value(arg: Arg, tensors: Iterator[torch.Tensor], holes: Iterator[int | float]) -> Any:
    match arg:
        case Ref() | Slot():
            return next(tensors)
        case Hole():
            return next(holes)
        case Items(items):
            return [_value(item, tensors, holes) for item in items]
        case Const(value):
            return value
        case Symbol("device"):
            return torch.device("cpu")
        case Symbol("complex", name):
            return complex(name)
        case Symbol("dtype", name):
            return BY_NAME[name]
        case Symbol(_, name):
            return getattr(torch, name)
