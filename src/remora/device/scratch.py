"""Runs a graph of torch calls on ghosts, tensors without data: which rows it would record, and nothing else happens.

The rows come from the same inference as in device/dispatch.py. What a row cannot tell (a value that is needed on the
client, a tensor of another device, a shape that depends on data) makes the graph unfit to be called as a whole.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from remora.capture.value import OUT_BITS, OUT_MASK, Value
from remora.device import tensor as tensors
from remora.device.addresses import root_of
from remora.device.dispatch import memo, memo_key
from remora.device.encode import node_of
from remora.device.index import resolved
from remora.device.infer import OutChanges, Outcome, infer, remora_tensors
from remora.device.memo_store import store
from remora.device.meta import TensorMeta
from remora.device.shadow import Shadow, known
from remora.device.special import SPECIAL
from remora.device.tensor import RemoraTensor
from remora.ir.node import Node
from remora.ops.composites import COMPOSITES
from remora.ops.schema import traits

aten = torch.ops.aten
_SEGMENT = -1  # of values that a graph makes; no segment of a recorder has it
_ALIASES = frozenset({aten.detach.default, aten.alias.default, aten.lift_fresh.default, aten.detach_.default})
_ROWS = frozenset({aten.copy_.default, aten._to_copy.default})  # rows, if their tensors are here already
_IMPLICIT = torch._C.DispatchKey.CompositeImplicitAutograd


class Unfit(Exception):
    """A graph that cannot be appended as a whole; says why."""


class Ghosts(threading.local):
    """copies: while a list, deepcopy makes ghosts of this thread's remora tensors, and writes them down."""

    copies: list[RemoraTensor] | None = None


ghosts = Ghosts()


def ghost_of(tensor: RemoraTensor, meta: TensorMeta | None = None) -> RemoraTensor:
    """A tensor that looks like another and is known by its name, or one of another size. It holds no value alive."""
    value = tensor._value
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        made = tensors.wrap(Value(None, value.segment, value.code, meta or value.meta))
        known_here = known(value)
        if meta is None and known_here is not None:
            made._value.shadow = Shadow(known_here.clone())
        if tensor.requires_grad:
            made.requires_grad_()
    return made


def ghosts_of(arguments: Any) -> tuple[Any, list[RemoraTensor]]:
    """A deep copy of a call's arguments with ghosts for remora tensors, and these in the order of being met."""
    ghosts.copies = []
    try:
        return copy.deepcopy(arguments), ghosts.copies
    finally:
        ghosts.copies = None


@dataclass
class Run:
    """What a graph recorded at one size. metas: of each row's outputs. outputs: of the graph, an input's number, a
    row's output with the one whose memory it shares, or a plain number. writes: the inputs that it writes."""

    nodes: list[Node]
    holes: list[int | float]
    ends: list[int]
    metas: list[tuple[Any, ...]]
    outputs: list[Any]
    writes: tuple[int, ...]


@dataclass(frozen=True)
class Output:
    """An output of a graph that is made by a row. root: the row's output whose memory it shares, if another."""

    made: tuple[int, int]
    root: tuple[int, int] | None


class Scratch(TorchDispatchMode):
    """Takes the place of device/dispatch.py: record. segment, slots: as a recorder's."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        super().__init__()
        self.segment = _SEGMENT
        self.slots: dict[Value, int] = {}
        by_name: dict[Any, int] = {}
        for number, tensor in enumerate(item for item in inputs if isinstance(item, RemoraTensor)):
            self.slots[tensor._value] = by_name.setdefault(tensor._value.name, number)
        self.nodes: list[Node] = []
        self.holes: list[int | float] = []
        self.ends: list[int] = []
        self.metas: list[tuple[Any, ...]] = []
        self.written: set[int] = set()
        self._roots: dict[Value, Value] = {}  # of views, whether PyTorch tracks them or not

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in SPECIAL:
            args, kwargs, result = self._special(func, args, kwargs)
            if result is not NotImplemented:
                return result
        if "device" in kwargs and not remora_tensors(args):  # as device/register.py gives factories on
            kwargs = {name: item for name, item in kwargs.items() if name != "pin_memory"}
            kwargs["device"] = resolved(kwargs["device"])
        facts = traits(func)
        if facts.composite and facts.name not in COMPOSITES:
            with self:
                return func._op_dk(_IMPLICIT, *args, **kwargs)
        try:
            outcome = _outcome_of(func, args, kwargs)
        except OutChanges:
            raise Unfit(f"{func} changes the shape of what it writes") from None
        if outcome.unknown:
            raise Unfit(f"the shape of what {func} gives depends on data")
        return self._row(func, args, kwargs, outcome)

    def _special(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        if func in _ALIASES:
            return args, kwargs, SPECIAL[func](func, args, kwargs)
        if func in _ROWS:
            device = kwargs.get("device")
            if len(remora_tensors(args)) != (1 if func is aten._to_copy.default else 2) or len(args) > 2:
                raise Unfit(f"{func} moves data")
            if device is not None and torch.device(device).type != "remora":
                raise Unfit(f"{func} moves data")
            if device is not None or "non_blocking" in kwargs:
                skipped = ("device", "non_blocking", "pin_memory", "layout")
                kwargs = {n: v for n, v in kwargs.items() if n not in skipped and v is not None}
            return args, kwargs, NotImplemented
        name = traits(func).name
        if name in COMPOSITES or func is aten.is_same_size.default:
            return args, kwargs, SPECIAL[func](func, args, kwargs)
        raise Unfit(f"{func} is more than a row")

    def _row(self, func: Any, args: Any, kwargs: Any, outcome: Outcome) -> Any:
        items = (*args, *kwargs.values())
        self._constants(items)
        row = len(self.nodes)
        self.nodes.append(node_of(func, args, kwargs, self, outcome.layouts))  # type: ignore[arg-type]
        self.ends.append(len(self.holes))
        inputs = remora_tensors(items)
        self.metas.append(tuple(meta if type(meta) is TensorMeta else None for meta in outcome.outs))
        wrap: Callable[[Value], Any] = tensors.wrap
        if outcome.is_view and inputs:
            wrap = tensors.view_of(inputs[0])
        elif traits(func).mutates:
            self._note_writes([inputs[index]._value for index in outcome.stale])
        results: list[Any] = []
        for out, meta in enumerate(outcome.outs):
            if type(meta) is TensorMeta:
                value = Value(None, _SEGMENT, row << OUT_BITS | out, meta)
                if outcome.is_view and inputs:
                    self._roots[value] = self._roots.get(inputs[0]._value, inputs[0]._value)
                results.append(wrap(value))
            else:
                results.append(inputs[meta] if meta is not None else None)
        return outcome.given(results)

    def _note_writes(self, values: list[Value]) -> None:
        roots = (self._roots.get(value, value) for value in values)
        self.written |= {self.slots[root] for root in roots if root.segment != _SEGMENT}

    def _constants(self, items: Any) -> None:
        """Adds a row's numbers, as device/dispatch.py encodes them."""
        for item in items:
            kind = type(item)
            if kind is int or kind is float:
                self.holes.append(item)
            elif kind is RemoraTensor:
                if item._value.segment != _SEGMENT and item._value not in self.slots:
                    raise Unfit("it reads a tensor that is not an input")
            elif isinstance(item, (list, tuple)):
                self._constants(item)
            elif isinstance(
                item, (torch.Tensor, torch._C.Generator, torch.SymInt, torch.SymFloat, torch.SymBool)
            ):
                raise Unfit(f"an argument of type {kind.__name__}")


def run(graph: Any, inputs: Sequence[Any]) -> Run:
    """Runs a graph on ghosts and plain numbers.

    Raises:
        Unfit: it is more than rows.
    """
    given = [item for item in inputs if isinstance(item, RemoraTensor)]
    scratch = Scratch(inputs)
    with scratch:
        outputs = graph(*inputs)
    listed = [_output(item, given) for item in outputs]
    return Run(
        scratch.nodes, scratch.holes, scratch.ends, scratch.metas, listed, tuple(sorted(scratch.written))
    )


def _output(item: Any, given: list[RemoraTensor]) -> Any:
    if item is None or type(item) is int:
        return item
    if not isinstance(item, RemoraTensor):
        raise Unfit(f"it gives a {type(item).__name__}")
    for number, tensor in enumerate(given):
        if item is tensor:
            return ("input", number)
    if item._value.segment != _SEGMENT or item._value.meta.lazy:
        raise Unfit("it gives another view of an input")
    root = root_of(item)
    if root.segment != _SEGMENT:
        raise Unfit("it gives a view of an input")
    made = _made(item._value)
    return Output(made, None if _made(root) == made else _made(root))


def _made(value: Value) -> tuple[int, int]:
    return value.code >> OUT_BITS, value.code & OUT_MASK


def _outcome_of(func: Any, args: Any, kwargs: Any) -> Outcome:
    """As device/dispatch.py: outcome_of, but what is inferred for a size that may never come is not remembered."""
    key = memo_key(func, args, kwargs)
    outcome = memo.get(key) or store.find(key)
    return outcome or infer(func, args, kwargs, remora_tensors((*args, *kwargs.values())))
