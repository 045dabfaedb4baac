"""What an op's outputs look like, without running it: by a shape rule, by the meta kernel, or by asking."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from remora.device.meta import TensorMeta, contiguous_meta, dense_order, intern, meta_of
from remora.device.shadow import foldable
from remora.device.sink import bound
from remora.device.tensor import RemoraTensor
from remora.errors import NotSupported
from remora.ir.node import FREE
from remora.ops.corrections import CORRECTIONS, OUT_IS_CONTIGUOUS
from remora.ops.layout import Meta
from remora.ops.permission import refusal
from remora.ops.schema import OpTraits, Place, functional_of, op_name, traits
from remora.ops.shapes_pointwise import RULES as POINTWISE
from remora.ops.torch_shapes import shape_rules

_RULES = {device: shape_rules(device) for device in ("cpu", "cuda")}
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
    only_writes: bool = field(init=False)  # it returns nothing

    def __post_init__(self) -> None:
        fresh = self.single and isinstance(self.outs[0], TensorMeta) and not self.unknown
        self.simple = fresh and not self.outs[0].lazy  # type: ignore[union-attr]
        self.shadowed = self.foldable or bool(self.stale)
        self.only_writes = bool(self.stale) and all(out is None for out in self.outs)

    def given(self, results: list[Any]) -> Any:
        """What the call returns, of its outputs."""
        if not self.outs:
            return None
        return results[0] if self.single else self.container(results)

    def at(self, index: int) -> Outcome:
        """The same with its outputs on another device."""
        outs = tuple(out.at(index) if isinstance(out, TensorMeta) else out for out in self.outs)
        return replace(self, outs=outs)


class OutChanges(Exception):
    """A call writes tensors whose shape it changes first: `known` says to what, or is empty."""

    def __init__(self, known: list[tuple[RemoraTensor, TensorMeta]]) -> None:
        super().__init__("an output has another shape than the result")
        self.known = known


def infer(func: Any, args: Any, kwargs: Any, inputs: list[RemoraTensor]) -> Outcome:
    """Finds the outcome of a call, as of one on the first device. Raises OutChanges, and what PyTorch raises for
    wrong arguments."""
    known = traits(func)
    refused = refusal(func) if func.namespace == "aten" else None
    if refused is not None:
        raise NotSupported(f"{op_name(func)} is not allowed on executors: {refused}")
    if _masked(args) if func is torch.ops.aten.index.Tensor else known.dynamic_shape:
        return _told_by_executor(func, known, args)
    global misses
    misses += 1
    # what gives nothing is not asked for
    outs = _by_rule(func, args, kwargs, inputs) if known.n_returns else []
    if outs is None:
        outs = _by_meta_kernel(func, args, kwargs, inputs)
    if _corrected_without_out(func, known):
        raise OutChanges([])
    if outs is None and known.n_returns:
        return _told_by_executor(func, known, args)
    outs = [] if outs is None else outs
    written = {out: _positions(place, args, kwargs) for out, place in known.written}
    stale = tuple(index for place in known.mutates for index in _positions(place, args, kwargs))
    return _outcome(func, known, outs, inputs, written, stale)


# Lists that a kernel returns and no meta kernel describes: how many tensors are in them.
_LENGTHS = {"aten._histogramdd_bin_edges.default": lambda args: args[0].shape[-1]}


def _told_by_executor(func: Any, known: OpTraits, args: Any) -> Outcome:
    """The outputs are as the kernel makes them; the executor describes them."""
    if known.written:
        raise OutChanges([])
    count = _LENGTHS.get(known.name)
    if count is not None:
        return Outcome((None,) * count(args), False, layouts=(FREE,) * count(args), unknown=True)
    if "List" in str(func._schema.returns[0].type):
        raise NotSupported(f"{known.name} returns a list of tensors whose number only the data tells")
    n = known.n_returns
    return Outcome((None,) * n, n == 1, container=tuple, layouts=(FREE,) * n, unknown=True)


def floats_matter(func: Any) -> bool:
    """Whether the outputs' metadata may depend on the value of a float, and not on its type alone."""
    known = traits(func)
    written = known.n_returns == len(known.written)  # the outputs are arguments, or there are none
    elementwise = known.name.startswith("aten._foreach_") or known.name in POINTWISE
    return not (elementwise or (written and bool(known.mutates)))


def _masked(args: Any) -> bool:
    """Indexing with a boolean mask: as many rows as there are trues."""
    return any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _by_rule(func: Any, args: Any, kwargs: Any, inputs: list[RemoraTensor]) -> Any:
    rule = _RULES.get(bound.device_type, _RULES["cuda"]).get(op_name(func))
    if rule is None or any(tensor._value.meta.lazy for tensor in inputs):
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
    writes = bool(traits(func).mutates)  # then none is shared: what it writes must overlap nothing
    metas = {id(tensor): tensor._value.meta for tensor in inputs}
    examples = {at: meta.fresh_example() if writes else meta.example() for at, meta in metas.items()}

    def to_meta(item: Any) -> Any:
        if isinstance(item, RemoraTensor):
            return examples[id(item)]
        if isinstance(item, torch.device):
            return torch.device("meta")
        return None if isinstance(item, torch._C.Generator) else item

    try:
        with torch.no_grad():
            outs = func(*tree_map(to_meta, args), **tree_map(to_meta, kwargs))
    except NotImplementedError:
        return None
    except RuntimeError as error:
        if _without_meta_kernel(str(error).lower()):
            return None  # no meta kernel for this op: the executor knows
        raise
    if writes:
        after = {at: meta_of(example).at(metas[at].index) for at, example in examples.items()}
        changed = [
            (tensor, after[id(tensor)]) for tensor in inputs if after[id(tensor)] is not metas[id(tensor)]
        ]
        if changed:
            raise OutChanges(_as_fresh(func, args, kwargs, to_meta, changed))
    outs = list(outs) if isinstance(outs, (list, tuple)) else outs
    return _corrected(func, args, outs)


def _corrected(func: Any, args: Any, outs: Any) -> Any:
    correction = CORRECTIONS.get(op_name(func))
    if correction is None:
        return outs
    plain = tree_map(lambda item: item._value.meta.facts if isinstance(item, RemoraTensor) else item, args)
    listed = [meta_of(out).facts for out in (outs if isinstance(outs, list) else [outs])]
    found = [intern(facts) for facts in correction(listed, plain, bound.device_type)]
    return found if isinstance(outs, list) else found[0]


def _corrected_without_out(func: Any, known: OpTraits) -> bool:
    """Whether the meta kernel is wrong about what an `out=` call writes."""
    functional = functional_of(func) if known.written else None
    return functional is not None and op_name(functional) in CORRECTIONS


def _as_fresh(func: Any, args: Any, kwargs: Any, to_meta: Any, changed: Any) -> Any:
    """Strides of resized outputs: as of the fresh results that the op gives without `out=`."""
    functional = functional_of(func)
    names = [argument.name for argument in func._schema.arguments if argument.is_out]
    if functional is None or op_name(functional) in OUT_IS_CONTIGUOUS:
        return changed
    rest = {name: item for name, item in kwargs.items() if name not in names}
    try:
        with torch.no_grad():
            outs = functional(*tree_map(to_meta, args), **tree_map(to_meta, rest))
    except (RuntimeError, NotImplementedError):
        return changed
    outs = _corrected(functional, args, list(outs) if isinstance(outs, (list, tuple)) else outs)
    written = remora_tensors([kwargs[name] for name in names])
    listed = outs if isinstance(outs, list) else [outs]
    metas = [out if isinstance(out, TensorMeta) else meta_of(out) for out in listed]
    found = {id(tensor): meta for tensor, meta in zip(written, metas, strict=False)}

    def target(tensor: RemoraTensor, after: TensorMeta) -> TensorMeta:
        meta = found.get(id(tensor), after)
        if meta.shape != after.shape:
            return after
        return intern(Meta(tuple(after.shape), meta.stride, after.offset, after.dtype), 0, after.index)

    return [(tensor, target(tensor, after)) for tensor, after in changed]


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


_GIVEN_STRIDES = {"aten.empty_strided.default", "aten.new_empty_strided.default"}


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
        elif known.name in _GIVEN_STRIDES:
            meta, layout = meta_of(out), FREE
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
