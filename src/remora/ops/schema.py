"""What PyTorch's own schema says of an op: what it writes, what its outputs alias, whether it is random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3
from torch._ops import OpOverload

from remora.ops.composites import COMPOSITES

Place = int | str
"""Where an argument stands in a call: its position, or its name if it is keyword-only."""

# Ops that update running statistics though their schema, kept for compatibility, does not say so.
_UPDATES_STATISTICS = frozenset(
    {"batch_norm", "_batch_norm_impl_index", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"}
    | {"instance_norm", "batch_norm_update_stats"}
    | {"batch_norm_gather_stats", "batch_norm_gather_stats_with_counts"}
)
_STATISTICS = ("running_mean", "running_var")

# Ops whose outputs share the input's storage though their schema calls them fresh.
_UNDECLARED_VIEWS = frozenset({"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes"})

# Flags without which an op leaves the running statistics alone and drops nothing out.
_TRAINING = ("training", "train", "use_input_stats")

# Writes that change sizes, strides or the storage itself but that no tag of PyTorch announces.
_UNTAGGED_METADATA_WRITES = frozenset({"set_data", "_resize_output_", "resize_as_", "resize_", "set_"})

# Attention and recurrent networks draw only to drop values out.
_DROPOUT = ("dropout_p", "dropout")


@dataclass(frozen=True, slots=True)
class OpTraits:
    """The facts of one op overload, all from its schema and tags.

    mutates: arguments that the op may write; `writes` says which a given call does.
    views: (return, argument) pairs: the return aliases the argument and neither is written. If the return
    is a list, each of its items does.
    may_alias: an output may be a view of an input, or the input itself, depending on values or layout.
    written: (return, argument) pairs: the return is that written argument.
    random: the op may draw from a generator; `draws` says whether a given call does.
    dropout_arg: position of the dropout probability without which a random op draws nothing.
    training_arg: position of the flag without which the op draws nothing and leaves `statistics` alone.
    dynamic_shape: an output's shape or value needs the contents of an input. True for `index.Tensor`, where
    only a mask among the indices makes it so: the caller decides.
    """

    name: str
    mutates: tuple[Place, ...]
    views: tuple[tuple[int, Place], ...]
    may_alias: bool
    written: tuple[tuple[int, Place], ...]
    random: bool
    dropout_arg: int | None
    training_arg: int | None
    statistics: tuple[Place, ...]
    dynamic_shape: bool
    metadata_only_write: bool
    composite: bool
    returns_tensor: bool
    returns_scalar: bool
    n_returns: int
    device_arg: Place | None

    @property
    def in_place(self) -> bool:
        """The op returns its first argument, written."""
        return (0, 0) in self.written

    @property
    def pure(self) -> bool:
        """The op writes nothing and always gives the same outputs for the same inputs."""
        return not self.mutates and not self.random

    def writes(self, args: Sequence[Any]) -> tuple[Place, ...]:
        """The arguments that the call with these positional arguments writes."""
        if self.statistics and self._evaluates(args):
            return tuple(place for place in self.mutates if place not in self.statistics)
        return self.mutates

    def draws(self, args: Sequence[Any]) -> bool:
        """Whether the call with these positional arguments draws random numbers."""
        if not self.random or self._evaluates(args):
            return False
        if self.dropout_arg is None:
            return True
        dropout_p = args[self.dropout_arg] if len(args) > self.dropout_arg else 0.0  # every default is 0
        return bool(dropout_p != 0.0)

    def _evaluates(self, args: Sequence[Any]) -> bool:
        at = self.training_arg
        return at is not None and len(args) > at and args[at] is False


_TRAITS: dict[OpOverload, OpTraits] = {}
_RESOLVED: dict[str, OpOverload] = {}
_DIGESTS: dict[OpOverload, str] = {}
_NAMES: dict[OpOverload, str] = {}


def traits(op: OpOverload) -> OpTraits:
    """The op's traits, read once."""
    known = _TRAITS.get(op)
    if known is None:
        known = _TRAITS[op] = _read(op)
    return known


def op_name(op: OpOverload) -> str:
    """`aten.add.Tensor`: the name under which the graph knows the op."""
    known = _NAMES.get(op)
    if known is None:
        known = _NAMES[op] = f"{op.namespace}.{op._schema.name.split('::')[1]}.{op._overloadname}"
    return known


def resolve(name: str) -> OpOverload:
    """The op called `name`, such as `aten.relu.default`; LookupError if this PyTorch has none.

    The name may come from a peer: only ops that the dispatcher knows are found, never a Python attribute.
    """
    known = _RESOLVED.get(name)
    if known is None:
        known = _RESOLVED[name] = _look_up(name)
    return known


def digest(op: OpOverload) -> str:
    """16 hex digits that change when the op's schema changes."""
    known = _DIGESTS.get(op)
    if known is None:
        known = _DIGESTS[op] = blake3(str(op._schema).encode()).hexdigest(length=8)
    return known


def functional_of(op: OpOverload) -> OpOverload | None:
    """The overload that gives fresh results where `op` writes them into `out=` arguments, or None."""
    wanted = [(a.name, str(a.type)) for a in op._schema.arguments if not a.is_out]
    packet = op.overloadpacket
    for overload in packet.overloads():
        other = getattr(packet, overload)
        if [(a.name, str(a.type)) for a in other._schema.arguments] == wanted and other is not op:
            return other  # type: ignore[no-any-return]
    return None


def _look_up(name: str) -> OpOverload:
    missing = LookupError(f"torch {torch.__version__} has no op named {name!r}")
    parts = name.split(".")
    if len(parts) != 3:
        raise LookupError(f"{name!r} is not an op name: expected namespace.name.overload")
    namespace, base, overload = parts
    schema_overload = "" if overload == "default" else overload
    try:
        torch._C._dispatch_find_schema_or_throw(f"{namespace}::{base}", schema_overload)
        op = getattr(getattr(getattr(torch.ops, namespace), base), overload)
    except (RuntimeError, AttributeError):
        raise missing from None
    if not isinstance(op, OpOverload):
        raise missing
    return op


def _read(op: OpOverload) -> OpTraits:
    schema, name = op._schema, op_name(op)
    base = schema.name.split("::")[1]
    arguments, returns = schema.arguments, schema.returns
    places: list[Place] = [a.name if a.kwarg_only else i for i, a in enumerate(arguments)]
    undeclared = _STATISTICS if base in _UPDATES_STATISTICS else ()
    mutates = tuple(
        place
        for place, a in zip(places, arguments, strict=True)
        if (a.alias_info is not None and a.alias_info.is_write) or a.name in undeclared
    )
    aliases = [
        (i, place, bool(r.alias_info.is_write))
        for i, r in enumerate(returns)
        if r.alias_info is not None
        for place, a in zip(places, arguments, strict=True)
        if a.alias_info is not None and _same_alias(a.alias_info, r.alias_info)
    ]
    views = tuple((i, place) for i, place, is_write in aliases if not is_write)
    if base in _UNDECLARED_VIEWS and not mutates:
        views = ((0, 0),)
    # PyTorch's own kernel: the Python decompositions for compilers, of which the op knows too, round otherwise
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    composite = has_kernel(op.name(), "CompositeImplicitAutograd") and not has_kernel(op.name(), "CPU")
    returns_tensor = any("Tensor" in str(r.type) for r in returns)
    tags = set(op.tags)
    kinds = [str(a.type) for a in arguments]
    random = torch.Tag.nondeterministic_seeded in tags or any("Generator" in kind for kind in kinds)
    random = random or op.namespace != "aten"  # others need not say, and may do anything
    devices = [place for place, kind in zip(places, kinds, strict=True) if "Device" in kind]
    positions = {a.name: i for i, a in enumerate(arguments) if not a.kwarg_only}
    return OpTraits(
        name=name,
        mutates=mutates,
        views=views,
        may_alias=_tagged(tags, "maybe_aliasing_or_mutating")
        or (composite and returns_tensor and not mutates and name not in COMPOSITES),
        written=tuple((i, place) for i, place, is_write in aliases if is_write),
        random=random,
        dropout_arg=next((positions[word] for word in _DROPOUT if random and word in positions), None),
        training_arg=next((positions[word] for word in _TRAINING if word in positions), None),
        statistics=tuple(positions[word] for word in _STATISTICS if positions.get(word) in mutates),
        dynamic_shape=_tagged(tags, "dynamic_output_shape") or _tagged(tags, "data_dependent_output"),
        metadata_only_write=_tagged(tags, "inplace_view") or base in _UNTAGGED_METADATA_WRITES,
        composite=composite,
        returns_tensor=returns_tensor,
        returns_scalar=len(returns) == 1 and str(returns[0].type) in ("int", "float", "bool", "number"),
        n_returns=len(returns),
        device_arg=devices[0] if devices else None,
    )


def _tagged(tags: set[torch.Tag], name: str) -> bool:
    tag = getattr(torch.Tag, name, None)
    return tag is not None and tag in tags


def _same_alias(argument: Any, result: Any) -> bool:
    """Whether a return's annotation names the argument's. A list's own set is empty: `Tensor(a)[]` comes
    from the argument `Tensor(a -> *)`."""
    if argument.is_write != result.is_write:
        return False
    if not result.after_set:
        return "*" in argument.after_set
    return bool(argument.before_set & result.before_set)
