"""Where the executor's PyTorch is another version: what differs, and how a call is made to fit, or is refused.

An op that both have in one form needs nothing. One that the executor lacks is taken apart on the client if it has
an exact decomposition: a composite's own, or a loop for `_foreach_` ops. One whose schema differs is called by
name: arguments that are at their default are left out, and given where the executor's default is another. The
rest is refused here, at the call, by name; nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch._ops import OpOverload

from remora.device.sink import bound
from remora.errors import UnsupportedOp
from remora.ops.schema import digest, op_name


@dataclass(frozen=True)
class Difference:
    """theirs: the executor's schema of the op; None: it has none. executor: in words, for errors."""

    op: OpOverload
    theirs: Any
    executor: str

    def refused(self, why: str) -> UnsupportedOp:
        return UnsupportedOp(
            f"{op_name(self.op)}: {why} (this is torch {torch.__version__}, {self.executor})"
        )


def difference(op: OpOverload) -> Difference | None:
    """None if the executor has the op as it is here, or does not say what it has."""
    _, sink = bound.need()
    table = sink.op_table()
    name = op_name(op)
    if not table or table.get(name) == digest(op):
        return None
    if name not in table:
        return Difference(op, None, sink.executor())
    text = sink.op_schemas().get(name)
    if text is None:
        raise UnsupportedOp(f"{name} has another schema on the {sink.executor()}, which does not tell it")
    return Difference(op, _parsed(text), sink.executor())


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return torch._C.parse_schema(text)


# ---------------------------------------------------------------- ops that the executor lacks


def instead(missing: Difference, args: Any, kwargs: Any) -> Any:
    """The result of a call of an op that the executor does not have, from ops that it may have.

    Raises:
        UnsupportedOp: there is no exact way; names the op and what to do.
    """
    op = missing.op
    if op._can_decompose():
        return op.decompose(*args, **kwargs)
    each = of_each(op)
    if each is not None:
        return for_each(each, args, kwargs)
    from remora.ops.permission import refusal  # not at import: importing it may be what loads this device

    if op.namespace != "aten":
        raise missing.refused(
            "the executor does not have this custom operator; install the module that defines it there, and start "
            "it with `remora serve --ops MODULE`"
        )
    reason = refusal(op)
    if reason is not None:
        raise missing.refused(f"the executor does not run it: {reason}")
    raise missing.refused(
        "the executor's PyTorch does not have it, and there is no exact way to make it of other ops; "
        "bring both to one version of PyTorch"
    )


def of_each(op: OpOverload) -> Callable[..., Any] | None:
    """The op of one tensor whose loop `_foreach_…` is, if there is one."""
    base, lists = op._schema.name.split("::")[1], [a for a in op._schema.arguments if _is_list(a)]
    if not base.startswith("_foreach_") or op._overloadname.endswith("out") or not lists:
        return None
    return getattr(torch.ops.aten, base.removeprefix("_foreach_"), None)


def _is_list(argument: Any) -> bool:
    return str(argument.type) == "List[Tensor]"


def for_each(each: Callable[..., Any], args: Any, kwargs: Any) -> list[Any] | None:
    """The results of a `_foreach_` op, tensor by tensor."""

    def at(item: Any, index: int) -> Any:
        return item[index] if isinstance(item, (list, tuple)) else item

    results = [
        each(*(at(arg, i) for arg in args), **{name: at(arg, i) for name, arg in kwargs.items()})
        for i in range(len(args[0]))
    ]
    return None if getattr(each, "__name__", "").endswith("_") else results


# ---------------------------------------------------------------- ops in another form


def translated(changed: Difference, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call as the executor's schema wants them, in the same order.

    Raises:
        UnsupportedOp: something is given that the executor's op does not take, or asked for that it does not give.
    """
    mine, theirs = changed.op._schema, changed.theirs
    if list(map(_result, mine.returns)) != list(map(_result, theirs.returns)):
        raise changed.refused(f"there it returns something else ({theirs})")
    known = {argument.name: argument for argument in theirs.arguments}
    given = dict(zip((argument.name for argument in mine.arguments), args, strict=False)) | kwargs
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for place, argument in enumerate(mine.arguments):
        its = known.pop(argument.name, None)
        if its is None or _kind(its) != _kind(argument):
            if argument.name in given and not _equal(argument, given[argument.name]):
                how = "takes no argument" if its is None else f"takes a {its.real_type} as"
                raise changed.refused(f"there it {how} {argument.name!r}; leave it at its default")
            if its is not None and not its.has_default_value():
                raise changed.refused(f"there {argument.name!r} is needed, as a {its.real_type}")
            continue
        if argument.name in given:
            value = given[argument.name]
        elif its.has_default_value() and _equal(its, argument.default_value):
            continue
        else:
            value = argument.default_value
        if len(positional) == place and not its.kwarg_only and _name_at(theirs, place) == argument.name:
            positional.append(value)
        else:
            named[argument.name] = value
    for argument in known.values():
        if not argument.has_default_value():
            raise changed.refused(
                f"there it needs an argument {argument.name!r}, which it does not have here"
            )
    return tuple(positional), named


def _equal(argument: Any, value: Any) -> bool:
    """Whether the argument has a default and `value` is it."""
    if not argument.has_default_value() or isinstance(value, torch.Tensor):
        return False
    default = argument.default_value
    return type(default) is type(value) and bool(default == value)


def _kind(argument: Any) -> tuple[str, bool]:
    alias = argument.alias_info
    kind = str(argument.real_type).replace("SymInt", "int")  # the same to a caller
    return kind, alias is not None and alias.is_write


def _result(result: Any) -> tuple[str, bool, bool]:
    alias = result.alias_info
    return str(result.type), alias is not None, alias is not None and alias.is_write


def _name_at(schema: Any, place: int) -> str | None:
    return schema.arguments[place].name if place < len(schema.arguments) else None
