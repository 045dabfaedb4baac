"""From an op call to a recorded row: the hot path of the client.

A call is looked up twice: in the memo, by the op, its inputs' metadata and its typed scalars, which gives the
outputs' metadata; and in the recorder's trie, by the op, its wiring and its kinds of constants, which gives the
row. Both hit in a program that repeats. What misses is inferred (device/infer.py) and learned.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from remora.capture.recorder import Recorder
from remora.capture.value import OUT_BITS, Value
from remora.device import tensor as tensors
from remora.device.encode import node_of
from remora.device.infer import Outcome, infer, is_memoised
from remora.device.meta import TensorMeta
from remora.device.shadow import Shadow, fold, known
from remora.device.sink import bound
from remora.device.special import SPECIAL
from remora.device.tensor import RemoraTensor
from remora.errors import NotSupported

_Make = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
_strided = torch.strided
_getframe = sys._getframe
_PLAIN = (bool, type(None), str, torch.dtype, torch.layout, torch.memory_format, torch.device)

memo: dict[tuple[Any, ...], Outcome] = {}


def dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Records an op that reached the Python key; one frame above is `__torch_dispatch__`."""
    return record(func, args, kwargs, 3)


def record(func: Any, args: Any, kwargs: Any, depth: int = 1) -> Any:
    """Records one op call and returns its lazy result.

    depth: how many Python frames above this one the program's own call is.
    """
    recorder = bound.recorder
    if recorder is None:
        recorder, _ = bound.need()
    with recorder.lock:
        if recorder.closed is not None:
            raise recorder.closed
        step = recorder.step
        if len(recorder.holes) != step.n_holes or len(recorder.slots) != step.n_slots:
            recorder.repair()
        key: list[Any] = [func]
        wire: list[Any] = [func]
        holes: list[int | float] = []
        inputs: list[RemoraTensor] = []
        if not (_encode(args, recorder, key, wire, holes, inputs)):
            return _with_uploads(func, args, kwargs, depth + 1)
        if kwargs:
            for name, value in kwargs.items():
                key.append(name)
                wire.append(name)
                if not _encode((value,), recorder, key, wire, holes, inputs):
                    return _with_uploads(func, args, kwargs, depth + 1)
        memo_key = tuple(key)
        outcome = memo.get(memo_key)
        if outcome is None:
            special = SPECIAL.get(func)
            if special is not None:
                recorder.repair()
                result = special(func, args, kwargs or {})
                if result is not NotImplemented:
                    return result
            outcome = infer(func, args, kwargs or {}, inputs)
            if is_memoised(outcome):
                memo[memo_key] = outcome
            return _commit(recorder, func, args, kwargs, outcome, depth + 1)  # the special may have cut
        frame = _getframe(depth)
        if step is recorder.empty:
            step = recorder.root(frame)
        wire.append(outcome.layouts)
        wire.append(id(frame.f_code))
        wire.append(frame.f_lasti)
        row_key = tuple(wire)
        after = step.next.get(row_key)
        if after is None:
            node = node_of(func, args, kwargs, recorder, outcome.layouts)
            after = recorder.learn(step, row_key, node, len(holes), frame)
        recorder.holes += holes
        recorder.ops += 1
        recorder.step = after  # the commit: what is not counted by the step has not happened
        result = _results(recorder, outcome, after.rows - 1, inputs, func, args, kwargs)
        if after.ends:
            recorder.cut()
        return result


def _commit(recorder: Recorder, func: Any, args: Any, kwargs: Any, outcome: Outcome, depth: int) -> Any:
    """Records a call whose outcome is not in the memo: encodes again, since inferring may have cut."""
    recorder.repair()
    key: list[Any] = []
    wire: list[Any] = [func]
    holes: list[int | float] = []
    inputs: list[RemoraTensor] = []
    _encode(args, recorder, key, wire, holes, inputs)
    for name, value in (kwargs or {}).items():
        wire.append(name)
        _encode((value,), recorder, key, wire, holes, inputs)
    frame = _getframe(depth)
    step = recorder.step
    if step is recorder.empty:
        step = recorder.root(frame)
    wire += (outcome.layouts, id(frame.f_code), frame.f_lasti)
    row_key = tuple(wire)
    after = step.next.get(row_key)
    if after is None:
        node = node_of(func, args, kwargs, recorder, outcome.layouts)
        after = recorder.learn(step, row_key, node, len(holes), frame)
    recorder.holes += holes
    recorder.ops += 1
    recorder.step = after
    if outcome.unknown:
        return _described(recorder, outcome, after.rows - 1)
    result = _results(recorder, outcome, after.rows - 1, inputs, func, args, kwargs)
    if after.ends:
        recorder.cut()
    return result


def _encode(
    items: Any,
    recorder: Recorder,
    key: list[Any],
    wire: list[Any],
    holes: list[int | float],
    inputs: list[RemoraTensor],
) -> bool:
    """Appends arguments to both keys; false if there is a local tensor that has to be uploaded first."""
    segment = recorder.segment
    for item in items:
        kind = type(item)
        if kind is RemoraTensor:
            value = item._value
            inputs.append(item)
            key.append(value.meta)
            if value.segment == segment:
                wire.append(value.code)
            else:
                slot = recorder.slots.get(value)
                if slot is None:
                    slot = recorder.add_slot(value)
                wire.append(~slot)
        elif kind is int or kind is float:
            key.append(kind)
            key.append(item)
            wire.append(kind)
            holes.append(item)
        elif kind is bool or item is None or kind is str:
            key.append(kind)
            key.append(item)
            wire.append(kind)
            wire.append(item)
        elif isinstance(item, (list, tuple)):
            key.append(list)
            key.append(len(item))
            wire.append(list)
            wire.append(len(item))
            if not _encode(item, recorder, key, wire, holes, inputs):
                return False
        elif isinstance(item, _PLAIN) or kind is complex:
            key.append(item)
            wire.append(item)
        elif isinstance(item, torch.Tensor):
            return False
        elif isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise NotSupported("symbolic sizes on the remora device: torch.export and torch.compile trace on meta or fake tensors")
        else:
            raise NotSupported(f"an argument of type {kind.__name__} ({item!r}) cannot travel to an executor")
    return True


def _with_uploads(func: Any, args: Any, kwargs: Any, depth: int) -> Any:
    """Moves the CPU tensors that PyTorch allows beside device tensors (numbers, indices), then records."""
    from remora.device.upload import upload

    assert bound.recorder is not None
    bound.recorder.repair()
    special = SPECIAL.get(func)
    if special is not None:
        result = special(func, args, kwargs or {})
        if result is not NotImplemented:
            return result

    def move(item: Any) -> Any:
        if isinstance(item, torch.Tensor) and type(item) is not RemoraTensor:
            if item.dim() and not func._schema.name.startswith("aten::index"):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"remora:0 and {item.device}! (when calling {func})"
                )
            return upload(item)
        if isinstance(item, (list, tuple)):
            return [move(x) for x in item]
        return item

    return record(
        func, [move(a) for a in args], {n: move(v) for n, v in kwargs.items()} if kwargs else None, depth + 1
    )


def _results(
    recorder: Recorder, outcome: Outcome, row: int, inputs: list[RemoraTensor], func: Any, args: Any, kwargs: Any
) -> Any:
    folded = _update_shadows(outcome, inputs, func, args, kwargs)
    outs = outcome.outs
    if outcome.single:
        meta = outs[0]
        if type(meta) is TensorMeta:
            code = row << OUT_BITS
            value = Value(recorder.session, recorder.graveyard, recorder.segment, code, meta)
            recorder.created.append(code)
            if folded is not None:
                value.shadow = Shadow(folded, _cell(outcome, inputs))
            result = _Make(
                RemoraTensor, meta.shape, meta.stride, meta.offset, None, meta.dtype, _strided, tensors.DEVICE
            )
            result._value = value
            if outcome.scalar:
                return result.item()
            return result
        return inputs[meta] if meta is not None else None
    results: list[Any] = []
    for out, meta in enumerate(outs):
        if type(meta) is TensorMeta:
            code = row << OUT_BITS | out
            value = Value(recorder.session, recorder.graveyard, recorder.segment, code, meta)
            recorder.created.append(code)
            if folded is not None:
                value.shadow = Shadow(folded[out], _cell(outcome, inputs))
            results.append(tensors.wrap(value))
        else:
            results.append(inputs[meta] if meta is not None else None)
    return outcome.container(results)


def _update_shadows(outcome: Outcome, inputs: list[RemoraTensor], func: Any, args: Any, kwargs: Any) -> Any:
    """Folds the op where it can be, and marks shadows that a write makes stale. Returns the folded outputs."""
    if outcome.foldable:
        for tensor in inputs:
            shadow = tensor._value.shadow
            if shadow is None or not shadow.valid[0]:
                break
        else:
            return fold(func, args, kwargs, RemoraTensor)
    for index in outcome.stale:
        shadow = inputs[index]._value.shadow
        if shadow is not None:
            shadow.valid[0] = False
    return None


def _cell(outcome: Outcome, inputs: list[RemoraTensor]) -> list[bool] | None:
    """A view shares its base's validity."""
    return inputs[0]._value.shadow.valid if outcome.is_view and inputs else None


def _described(recorder: Recorder, outcome: Outcome, row: int) -> Any:
    """Waits for the executor to say what an op's outputs look like: their shape depends on data."""
    from remora.device.download import described

    values = []
    for out in range(len(outcome.outs)):
        code = row << OUT_BITS | out
        values.append(Value(recorder.session, recorder.graveyard, recorder.segment, code, None))
        recorder.created.append(code)
    described(values)
    results = [tensors.wrap(value) for value in values]
    return results[0] if outcome.single else outcome.container(results)


__all__ = ["dispatch", "known", "memo", "record"]
