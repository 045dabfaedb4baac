"""From an op call to a recorded row: the hot path of the client.

A call is recognised by the op, the place in the program that makes it, its wiring and its kinds of constants:
that is the row, found by one look-up behind the rows before it. Where the inputs' metadata and the numbers are
also those of last time, the outcome is that of last time. What differs goes through the memo, and what the memo
does not know is inferred (device/infer.py) and learned.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import increment_version

from remora.capture.recorder import Recorder, Step
from remora.capture.value import OUT_BITS, Value
from remora.device import other_torch
from remora.device import tensor as tensors
from remora.device.across import across, index_of_call
from remora.device.eager_errors import as_eager
from remora.device.encode import node_of
from remora.device.foreign import PYTHON_NAMESPACES, run_here
from remora.device.index import device_at
from remora.device.infer import OutChanges, Outcome, floats_matter, infer, remora_tensors
from remora.device.memo_store import store
from remora.device.meta import TensorMeta
from remora.device.resize import write_out
from remora.device.rng import introduce, number_of
from remora.device.shadow import Shadow, fold, known
from remora.device.sink import bound
from remora.device.special import SPECIAL, only_a_row
from remora.device.tensor import RemoraTensor
from remora.device.tracing import meets_another_class
from remora.errors import NotSupported
from remora.ops.composites import COMPOSITES
from remora.ops.dtypes import dtype_name
from remora.ops.schema import traits

_make = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
_strided = torch.strided
_Generator, _Stream = torch._C.Generator, torch._C.Stream
_getframe = sys._getframe
_get_default_dtype = torch.get_default_dtype
_IMPLICIT = torch._C.DispatchKey.CompositeImplicitAutograd
_is_inference_mode_enabled = torch.is_inference_mode_enabled
_PLAIN = (bool, type(None), str, torch.dtype, torch.layout, torch.memory_format, torch.device, complex)

memo: dict[tuple[Any, ...], Outcome] = {}


class Noticed:
    """What device/routes.py is told. notice: the outermost module of each row that is new. opens: the frame that a
    segment starts in, since rows of a second model of the same form are not new."""

    notice: Callable[[Any], None] = staticmethod(lambda module: None)
    opens: Callable[[Any], None] = staticmethod(lambda frame: None)


noticed = Noticed()


class _LocalTensor(Exception):
    """An argument has to be brought to the executor first (a CPU tensor, a generator), or means nothing there."""


def record(
    func: Any,
    types: Any,
    args: Any = (),
    kwargs: Any = None,
    depth: int = 1,
    outcome: Outcome | None = None,
) -> Any:
    """Records one op call and returns its lazy result. It is itself the tensors' `__torch_dispatch__`.

    depth: how many Python frames above this one the program's own call is.
    outcome: if it has been inferred already.
    """
    recorder = bound.recorder or bound.need()[0]
    if _get_default_dtype() is not recorder.context:
        tell_default_dtype(recorder)
    frame = _getframe(depth)
    code = frame.f_code
    with recorder.lock:
        if recorder.closed is not None:
            raise recorder.closed
        step = recorder.step
        slots = recorder.slots
        if len(recorder.holes) != step.n_holes or len(slots) != step.n_slots:
            recorder.repair()
        if step is recorder.empty:
            step = recorder.root(frame)
            if recorder.whole_calls:
                noticed.opens(frame)
        wire: list[Any] = [id(func), id(code), frame.f_lasti]
        metas: list[Any] = []
        holes: list[int | float] = []
        shadowed = False  # whether any input has a shadow
        items = args
        if kwargs:
            wire.append(tuple(kwargs))
            items = (*args, *kwargs.values())
        segment = recorder.segment
        local = False
        try:
            for item in items:
                kind = type(item)
                if kind is RemoraTensor:
                    value = item._value
                    metas.append(value.meta)
                    if value.segment == segment:
                        wire.append(value.code)
                    else:
                        slot = slots.get(value)
                        wire.append(~(recorder.add_slot(value) if slot is None else slot))
                    if value.shadow is not None:
                        shadowed = True
                elif kind is int or kind is float:
                    wire.append(kind)
                    holes.append(item)
                elif kind is list or kind is tuple:
                    shadowed |= _encode_list(item, recorder, wire, metas, holes)
                else:
                    shadowed |= _encode_other(item, recorder, wire, metas, holes)
        except _LocalTensor:
            local = True
        if local:
            recorder.repair()
            value = None  # special._fill_blank counts who knows the value
            return _with_uploads(func, args, kwargs, depth + 1)
        row_key = tuple(wire)
        after = step.next.get(row_key)
        if after is None or after.holes != holes or after.metas != metas:
            if outcome is None:
                if id(func) not in recorder.agreed:
                    return _first_call(recorder, func, args, kwargs, depth + 1)
                outcome = memo.get(memo_key(func, args, kwargs))
                if outcome is None:
                    return _learn_outcome(recorder, func, args, kwargs, depth + 1)
            after = _step(recorder, step, after, row_key, outcome, func, args, kwargs, len(holes), depth + 1)
            after.holes, after.metas, after.outcome, after.least_s = holes, metas, outcome, None
        else:
            outcome = after.outcome
        if holes:
            recorder.holes += holes
        recorder.step = after  # the commit: what is not counted by the step has not happened
        # folds may start from nothing; views under inference mode are of their base's kind
        if outcome.simple and not (
            outcome.shadowed and (shadowed or not metas or _is_inference_mode_enabled())
        ):
            meta = outcome.outs[0]
            value = Value(recorder, segment, (after.rows - 1) << OUT_BITS, meta)
            recorder.created.append(value)
            result = _make(
                RemoraTensor, meta.shape, meta.stride, meta.offset, None, meta.dtype, _strided, meta.device
            )
            result._value = value
        elif outcome.unknown:
            return _described(recorder, outcome, after.rows - 1, func, args, kwargs)
        else:
            result = _results(recorder, outcome, after.rows - 1, func, items, args, kwargs)
        if after.ends and (recorder.holds is None or not recorder.holds(after)):
            recorder.cut()
        return result


def tell_default_dtype(recorder: Recorder) -> None:
    """Type promotion depends on the default dtype, here and on the executor; it changes between segments."""
    dtype = _get_default_dtype()
    with recorder.lock:
        if recorder.context is not None or dtype is not torch.float32:
            assert bound.sink is not None
            bound.sink.default_dtype(dtype_name(dtype))
        recorder.context = dtype


def _encode_list(
    items: Any, recorder: Recorder, wire: list[Any], metas: list[Any], holes: list[int | float]
) -> bool:
    """Adds a list argument to the row; returns whether a tensor in it has a shadow."""
    wire.append(list)
    wire.append(len(items))
    segment = recorder.segment
    shadowed = False
    for item in items:
        kind = type(item)
        if kind is int:
            wire.append(kind)
            holes.append(item)
        elif kind is RemoraTensor:
            value = item._value
            metas.append(value.meta)
            if value.segment == segment:
                wire.append(value.code)
            else:
                slot = recorder.slots.get(value)
                wire.append(~(recorder.add_slot(value) if slot is None else slot))
            if value.shadow is not None:
                shadowed = True
        elif kind is float:
            wire.append(kind)
            holes.append(item)
        else:
            shadowed |= _encode_other(item, recorder, wire, metas, holes)
    return shadowed


def _encode_other(
    item: Any, recorder: Recorder, wire: list[Any], metas: list[Any], holes: list[int | float]
) -> bool:
    """What is neither a remora tensor nor a number. Raises _LocalTensor, NotSupported."""
    if isinstance(item, _PLAIN):
        wire.append(type(item))  # True and 1 are equal
        wire.append(item)
    elif isinstance(item, (list, tuple)):
        return _encode_list(item, recorder, wire, metas, holes)
    elif isinstance(item, (torch.Tensor, _Stream)):
        raise _LocalTensor
    elif isinstance(item, _Generator):
        number = number_of(item, recorder)
        if number is None:
            raise _LocalTensor
        wire.append(_Generator)
        holes.append(number)
    elif isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        raise NotSupported("symbolic sizes on the remora device; trace on meta or fake tensors instead")
    elif isinstance(item, (torch.UntypedStorage, torch.TypedStorage)):
        raise NotSupported(
            "the storage of a remora tensor is on an executor; use set_() with a tensor, or copy_()"
        )
    else:
        raise NotSupported(
            f"an argument of type {type(item).__name__} ({item!r}) cannot travel to an executor"
        )
    return False


def memo_key(func: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """All that the outputs' metadata depends on: the op, the inputs' metadata, the typed scalars, the device."""
    key: list[Any] = [func, _get_default_dtype(), bound.memo_scope]
    matter = _matter.get(func)
    if matter is None:
        matter = _matter[func] = floats_matter(func)
    _add_to_key(args, key, matter)
    if kwargs:
        for name, item in kwargs.items():
            key.append(name)
            _add_to_key((item,), key, matter)
    return tuple(key)


_matter: dict[Any, bool] = {}


def _add_to_key(items: Any, key: list[Any], floats: bool) -> None:
    for item in items:
        if type(item) is RemoraTensor:
            key.append(item._value.meta)
        elif isinstance(item, (list, tuple)):
            key += (list, len(item))
            _add_to_key(item, key, floats)
        elif type(item) is float and not floats:
            key.append(float)  # a learning rate that decays is not learned anew in each step
        elif item is None or isinstance(item, (bool, int, float, str)):
            key += (type(item), item)
        else:
            key.append(_Generator if isinstance(item, _Generator) else item)


def _first_call(recorder: Recorder, func: Any, args: Any, kwargs: Any, depth: int) -> Any:
    """A call of an op that this session has not recorded yet: the executor's PyTorch may have it in another
    form, or not at all."""
    recorder.repair()
    if func.namespace in PYTHON_NAMESPACES:
        return run_here(func, args, kwargs or {})
    difference = None if func in SPECIAL else other_torch.difference(func)
    if difference is None:
        recorder.agreed.add(id(func))
        return record(func, (), args, kwargs, depth + 1)
    if difference.theirs is None:
        return other_torch.instead(difference, args, kwargs or {})
    try:
        outcome = outcome_of(func, args, kwargs)
    except OutChanges as changes:
        return write_out(changes, func, args, kwargs or {}, depth + 1)
    args, kwargs = other_torch.translated(difference, args, kwargs or {})
    return record(func, (), args, kwargs, depth + 1, outcome)


def _learn_outcome(recorder: Recorder, func: Any, args: Any, kwargs: Any, depth: int) -> Any:
    """A call that the memo does not know: moves data, or is looked up on disk, or is inferred."""
    recorder.repair()
    result = SPECIAL.get(func, only_a_row)(func, args, kwargs or {})
    if result is not NotImplemented:
        return result
    facts = traits(func)
    if facts.composite and facts.name not in COMPOSITES:
        # under inference_mode composites arrive whole; PyTorch's own kernel, where it has a Python one too
        return func._op_dk(_IMPLICIT, *args, **(kwargs or {}))
    if bound.n_devices > 1:
        result = across(func, args, kwargs or {}, depth + 1)
        if result is not NotImplemented:
            return result
    try:
        outcome = outcome_of(func, args, kwargs)
    except OutChanges as changes:
        return write_out(changes, func, args, kwargs or {}, depth + 1)
    return record(func, (), args, kwargs, depth + 1, outcome)


def outcome_of(func: Any, args: Any, kwargs: Any) -> Outcome:
    """From the memo, from disk, or inferred."""
    key = memo_key(func, args, kwargs)
    outcome = memo.get(key)
    if outcome is None:
        if bound.n_devices == 1:
            outcome = _found(key, func, args, kwargs)
        else:  # what is known of a call on the first device is known of it on any
            index = index_of_call(func, args, kwargs or {})
            outcome = _found(_on_first(key), func, args, kwargs).at(index)
        if not outcome.unknown:
            memo[key] = outcome
    return outcome


def _found(key: tuple[Any, ...], func: Any, args: Any, kwargs: Any) -> Outcome:
    """From disk, or inferred."""
    outcome = store.find(key)
    if outcome is None:
        inputs = remora_tensors((*args, *(kwargs or {}).values()))
        try:
            outcome = infer(func, args, kwargs or {}, inputs)
        except OutChanges:
            raise
        except Exception as error:
            raise as_eager(func, args, kwargs or {}, error) from None
        store.add(key, outcome)
    return outcome


def _on_first(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """The memo key of the same call on the first device, of a session that has no other."""

    def on_first(item: Any) -> Any:
        if type(item) is TensorMeta:
            return item.at(0)
        return device_at(0) if type(item) is torch.device and item.type == "remora" else item

    return (*key[:2], bound.device_type, *map(on_first, key[3:]))


def _step(
    recorder: Recorder,
    step: Step,
    known: Step | None,
    row_key: tuple[Any, ...],
    outcome: Outcome,
    func: Any,
    args: Any,
    kwargs: Any,
    n_holes: int,
    depth: int,
) -> Step:
    """The row behind `step` for this call. Rows of one wiring that differ in their layouts are apart."""
    if known is not None and known.node is not None and known.node.layouts == outcome.layouts:
        return known
    if known is not None:
        row_key = (*row_key, outcome.layouts)
        known = step.next.get(row_key)
        if known is not None:
            return known
    node = node_of(func, args, kwargs, recorder, outcome.layouts)
    after = recorder.learn(step, row_key, node, n_holes, _getframe(depth))
    if recorder.whole_calls and after.where is not None and not torch.is_grad_enabled():
        noticed.notice(after.where.model)
    return after


def _with_uploads(func: Any, args: Any, kwargs: Any, depth: int) -> Any:
    """Moves the CPU tensors that PyTorch allows beside device tensors (numbers, indices), then records."""
    from remora.device.subclass import plain_arguments
    from remora.device.upload import upload

    args, kwargs = plain_arguments(args, kwargs)
    result = SPECIAL.get(func, only_a_row)(func, args, kwargs or {})
    if result is not NotImplemented:
        return result
    if meets_another_class((*args, *(kwargs or {}).values())):
        return NotImplemented  # PyTorch asks that class next

    beside = remora_tensors((*args, *(kwargs or {}).values()))
    index = beside[0]._value.meta.index if beside else 0

    def move(item: Any) -> Any:
        if isinstance(item, torch.Tensor) and type(item) is not RemoraTensor:
            # PyTorch makes some kinds out of remora tensors by itself
            if item.device.type == "remora":
                raise NotSupported(f"{func}: the remora device has no {item.layout} tensors; use .to_dense()")
            if item.dim() and not func._schema.name.startswith("aten::index"):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"{device_at(index)} and {item.device}! (when calling {func})"
                )
            return upload(item, index)
        if isinstance(item, (list, tuple)):
            return [move(x) for x in item]
        if isinstance(item, _Generator):
            introduce(item)
        return item

    moved = {name: move(item) for name, item in kwargs.items()} if kwargs else None
    return record(func, (), [move(item) for item in args], moved, depth + 1)


def _results(
    recorder: Recorder,
    outcome: Outcome,
    row: int,
    func: Any,
    items: Any,
    args: Any,
    kwargs: Any,
) -> Any:
    """The outputs of a row that is more than one fresh tensor, with their shadows. items: all arguments."""
    inputs = remora_tensors(items)
    folded = _update_shadows(outcome, inputs, func, args, kwargs)
    if outcome.only_writes and func._opname.startswith("_foreach_"):
        _count_writes(outcome, inputs)
    if folded is not None and outcome.single:
        folded = (folded,)
    wrap = tensors.view_of(inputs[0]) if outcome.is_view and inputs else tensors.wrap
    cell = inputs[0]._value.shadow.valid if folded is not None and outcome.is_view and inputs else None
    results: list[Any] = []
    for out, meta in enumerate(outcome.outs):
        if type(meta) is TensorMeta:
            code = row << OUT_BITS | out
            value = Value(recorder, recorder.segment, code, meta)
            recorder.created.append(value)
            if folded is not None:
                value.shadow = Shadow(folded[out], cell)  # a view shares its base's validity
            results.append(wrap(value))
        else:
            results.append(inputs[meta] if meta is not None else None)
    return outcome.given(results)


def _count_writes(outcome: Outcome, inputs: list[RemoraTensor]) -> None:
    """PyTorch counts the writes of an in-place op by what it returns, and those of `_foreach_` ops in their kernels."""
    written = [inputs[index] for index in outcome.stale]
    increment_version([tensor for tensor in written if not tensor.is_inference()])


def _update_shadows(outcome: Outcome, inputs: list[RemoraTensor], func: Any, args: Any, kwargs: Any) -> Any:
    """Folds the op where it can be, and marks shadows that a write makes stale. Returns the folded outputs."""
    if outcome.foldable and all(known(tensor._value) is not None for tensor in inputs):
        return fold(func, args, kwargs, RemoraTensor)
    for index in outcome.stale:
        shadow = inputs[index]._value.shadow
        if shadow is not None:
            shadow.valid[0] = False
    return None


def _described(recorder: Recorder, outcome: Outcome, row: int, func: Any, args: Any, kwargs: Any) -> Any:
    """Waits for the executor to say what an op's outputs look like: their shape depends on data."""
    from remora.device.download import described

    index = index_of_call(func, args, kwargs or {})
    values = []
    for out in range(len(outcome.outs)):
        code = row << OUT_BITS | out
        values.append(Value(recorder, recorder.segment, code, None))
        recorder.created.append(values[-1])
    described(values, index)
    results = [tensors.wrap(value) for value in values]
    return results[0] if outcome.single else outcome.container(results)
