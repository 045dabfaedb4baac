"""What an op's outputs look like, without running it: by a shape rule, by the meta kernel, or by asking."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_map

from remora.device.meta import TensorMeta, contiguous_meta, dense_order, intern, meta_of
from remora.device.shadow import foldable
from remora.device.tensor import RemoraTensor
from remora.errors import NotSupported
from remora.ops.layout import Meta
from remora.ops.schema import OpTraits, Place, op_name, traits
from remora.ops.torch_shapes import shape_rules

_RULES = shape_rules()
misses = 0  # calls that neither this process nor one before it had inferred


@dataclass(slots=True)
class Outcome:
    """The remembered effect of an op call on the client.

    outs: for each output its metadata, or the position among the tensor inputs of the one that it is, or None.
    layouts: as in ir.node.Node. stale: inputs whose shadows a write makes stale.
    unknown: only the executor can tell the outputs' shapes.
    """

    outs: tuple[TensorMeta | int | None, ...]
    single: bool
    container: Any = list
    layouts: tuple[tuple[int, ...], ...] = ()
    foldable: bool = False
    is_view: bool = False
    stale: tuple[int, ...] = ()
    unknown: bool = False
    simple: bool = field(init=False)  # one fresh output or view: the common case
    shadowed: bool = field(init=False)  # shadows of the inputs matter

    def __post_init__(self) -> None:
        self.simple = self.single and isinstance(self.outs[0], TensorMeta) and not self.unknown
        self.shadowed = self.foldable or bool(self.stale)


def infer(func: Any, args: Any, kwargs: Any, inputs: list[RemoraTensor]) -> Outcome:
    """Finds the outcome of a call. Raises what PyTorch raises for wrong arguments."""
    known = traits(func)
    if known.metadata_only_write:
        raise NotSupported(
            f"{op_name(func)} changes a tensor's own shape, which remora tensors do not support yet"
        )
    if _masked(args) if func is torch.ops.aten.index.Tensor else known.dynamic_shape:
        return Outcome((None,) * known.n_returns, known.n_returns == 1, container=tuple, unknown=True)
    global misses
    misses += 1
    outs = _by_rule(func, args, kwargs) if known.n_returns else []  # what gives nothing is not asked for
    if outs is None:
        outs = _by_meta_kernel(func, args, kwargs, inputs)
    if outs is None and known.n_returns:
        return Outcome((None,) * known.n_returns, known.n_returns == 1, container=tuple, unknown=True)
    written = {out: _positions(place, args, kwargs) for out, place in known.written}
    stale = tuple(index for place in known.mutates for index in _positions(place, args, kwargs))
    return _outcome(func, known, outs, inputs, written, stale)


def _masked(args: Any) -> bool:
    """Indexing with a boolean mask: as many rows as there are trues."""
    return any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _by_rule(func: Any, args: Any, kwargs: Any) -> Any:
    rule = _RULES.get(op_name(func))
    if rule is None:
        return None

    def facts(item: Any) -> Any:
        if isinstance(item, RemoraTensor):
            return item._value.meta.facts
        if isinstance(item, (list, tuple)):
            return [facts(x) for x in item]
        return item

    try:
        found = rule(*[facts(a) for a in args], **{name: facts(v) for name, v in kwargs.items()})
    except TypeError:  # called in a way that the rule does not know
        return None
    if found is None:
        return None
    if isinstance(found, Meta):
        return intern(found)
    return [intern(facts) for facts in found]


def _by_meta_kernel(func: Any, args: Any, kwargs: Any, inputs: list[RemoraTensor]) -> Any:
    examples = {id(tensor): tensor._value.meta.example() for tensor in inputs}

    def to_meta(item: Any) -> Any:
        if isinstance(item, RemoraTensor):
            return examples[id(item)]
        if isinstance(item, torch.device):
            return torch.device("meta")
        return None if isinstance(item, torch._C.Generator) else item

    before = [meta_of(example) for example in examples.values()]
    try:
        with torch.no_grad():
            outs = func(*tree_map(to_meta, args), **tree_map(to_meta, kwargs))
    except NotImplementedError:
        return None
    except RuntimeError as error:
        if _without_meta_kernel(str(error).lower()):
            return None  # no meta kernel for this op: the executor knows
        raise
    if [meta_of(example) for example in examples.values()] != before:
        for tensor in inputs:
            tensor._value.meta._example = None
        raise NotSupported(f"{op_name(func)} resizes its output, which remora tensors do not support yet")

    return list(outs) if isinstance(outs, (list, tuple)) else outs


def _without_meta_kernel(message: str) -> bool:
    """Whether that is what PyTorch says; custom operators have fake kernels, which PyTorch asks in their place."""
    return ("meta" in message and "expected" not in message) or "no fake impl registered" in message


def _positions(place: Place, args: Any, kwargs: Any) -> tuple[int, ...]:
    """Positions among the tensor inputs of the tensors that stand at a place of the call.

    By place and not by identity: the outcome is remembered for other tensors with the same metadata.
    """
    before = args[:place] if isinstance(place, int) else (*args, *_until(place, kwargs))
    at = kwargs.get(place) if isinstance(place, str) else args[place] if place < len(args) else None
    first = len(remora_tensors(before))
    return tuple(range(first, first + len(remora_tensors((at,)))))


def _until(name: str, kwargs: Any) -> list[Any]:
    """The keyword arguments that stand before `name`."""
    return list(kwargs.values())[: list(kwargs).index(name)] if name in kwargs else list(kwargs.values())


def remora_tensors(items: Any) -> list[RemoraTensor]:
    """The remora tensors among arguments, lists included, in the order of a call's tensor inputs."""
    found: list[RemoraTensor] = []
    for item in items:
        if isinstance(item, RemoraTensor):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            found += remora_tensors(item)
    return found


def _outcome(
    func: Any,
    known: OpTraits,
    outs: Any,
    inputs: list[RemoraTensor],
    written: dict[int, tuple[int, ...]],
    stale: tuple[int, ...],
) -> Outcome:
    """written: for each output that is a written argument, its positions among the inputs."""
    single = not isinstance(outs, list)
    listed = [outs] if single else outs
    if any(isinstance(out, (bool, float)) for out in listed):
        raise NotSupported(f"{op_name(func)} returns a number that only the data can give")
    is_view = bool(known.views) and not known.mutates
    metas: list[TensorMeta | int | None] = []
    layouts: list[tuple[int, ...]] = []
    for number, out in enumerate(listed):
        if number in written:
            meta, layout = written[number][0], ()
        else:
            meta, layout = _declare(out, is_view)
        metas.append(meta)
        layouts.append(layout)
    fresh = [meta for meta in metas if isinstance(meta, TensorMeta)]
    in_metas = [tensor._value.meta for tensor in inputs]
    can_fold = foldable(known, in_metas, fresh)
    if is_view and not can_fold:
        stale = tuple(range(len(inputs)))
    return Outcome(
        tuple(metas),
        single,
        _container(func),
        tuple(layouts) if any(layouts) else (),
        can_fold,
        is_view,
        stale,
    )


def _declare(out: Any, is_view: bool) -> tuple[TensorMeta | None, tuple[int, ...]]:
    """The metadata that the client declares for an output, and the layout that the executor enforces."""
    if out is None:
        return None, ()
    if isinstance(out, TensorMeta):
        meta, example = out, out.example()
    else:
        meta, example = meta_of(out), out
    if is_view or example.is_contiguous():
        return meta, ()
    order = dense_order(example)
    return (meta, order) if order is not None else (contiguous_meta(meta.shape, meta.dtype), ())


def _container(func: Any) -> Any:
    """PyTorch returns a list for Tensor[] and a tuple for several returns."""
    return list if len(func._schema.returns) == 1 else tuple
