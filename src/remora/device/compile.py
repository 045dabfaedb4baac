"""`torch.compile` around remora tensors: the frame runs as it is, and its ops are captured like any others.

What torch.compile is asked for, fewer and cheaper launches, is what capture does already: the ops of a frame go to
the executor as one template. Kernels that a compiler makes on this machine could not run there. So a frame in which
Dynamo meets a remora tensor is left alone, with all frames below it and for that call only: the same function
compiles as ever when it is called with CPU tensors. `remora.stats()` counts them, so that nothing is hidden.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from itertools import chain
from types import CodeType, ModuleType
from typing import Any

import torch

from remora.device.counters import counters
from remora.device.late import waits, when_loaded
from remora.device.tensor import RemoraTensor
from remora.errors import NotSupported

_DYNAMO = "torch._dynamo"  # the package: once it is loaded, all that is changed here is
_MAX_LOOKED_AT = 1000  # objects, for a tensor, before a trace is begun
_PLAIN = (str, bytes, int, float, type(None), type, ModuleType)
_NOT_EXPORTED = (
    "Dynamo cannot trace remora tensors for an export. Use torch.export.export(…, strict=False), which traces "
    "with fake tensors, or export from a CPU copy of the module and move the result"
)


class _Here(threading.local):
    tracing = False  # a frame of this thread is being traced
    dealt_with = False  # see _counted
    ours = False  # it is device/trace.py that traces


class Frames:
    """known: code that reaches remora tensors by a way that only a trace finds, so that it is traced once."""

    def __init__(self) -> None:
        self.known: weakref.WeakSet[CodeType] = weakref.WeakSet()
        self.here = _Here()


frames = Frames()


class _Met(BaseException):
    """A trace has met the remora device. Not an Exception: those are taken for failures of the compiler."""


def holds_remora(items: Iterable[Any]) -> bool:
    """Whether a remora tensor is found in what is visible at once: containers, modules, attributes. Nearest first,
    and not for long: what is not found here, a trace will find. Runs no code of the program's own objects."""
    seen: set[int] = set()
    queue = deque(items)
    while queue and len(seen) < _MAX_LOOKED_AT:
        item = queue.popleft()
        kind = type(item)
        if id(item) in seen or issubclass(kind, _PLAIN):
            continue
        seen.add(id(item))
        if issubclass(kind, torch.Tensor):
            if issubclass(kind, RemoraTensor):
                return True
        elif issubclass(kind, torch.nn.Module):
            if any(isinstance(t, RemoraTensor) for t in chain(item.parameters(), item.buffers())):
                return True
        elif kind is torch.device:
            if item.type == "remora":
                return True
        else:
            queue.extend(inside(item, kind))
    return False


def inside(item: Any, kind: type) -> Iterable[Any]:
    """What a container or an object holds, by its class; no code of the program's runs."""
    if issubclass(kind, dict):
        return tuple(dict.values(item))
    for container in (list, tuple, set, frozenset):
        if issubclass(kind, container):
            return tuple(container.__iter__(item))
    if callable(item):
        return ()
    try:
        attributes = object.__getattribute__(item, "__dict__")
    except AttributeError:
        return ()
    return tuple(attributes.values()) if isinstance(attributes, dict) else ()


def _sees_remora(frame: Any) -> bool:
    names = frame.f_globals
    of_globals = (names[name] for name in frame.f_code.co_names if name in names)
    return frame.f_code in frames.known or holds_remora(chain(frame.f_locals.values(), of_globals))


def _leave_alone(types: Any) -> Any:
    """Dynamo's word for: run this frame and what it calls as they are, and ask again next time."""
    counters.eager_frames += 1
    frames.here.dealt_with = True
    skip = types.FrameExecStrategy(types.FrameAction.SKIP, types.FrameAction.SKIP)
    return types.ConvertFrameReturn(frame_exec_strategy=skip, apply_to_code=False)


def _counted(count: Any) -> Any:
    """fullgraph=True complains of a call in which no frame was compiled; one that was left alone is dealt with.

    `count` sets the number of frames (0: from here on, below: it counts no more) and returns the one before.
    """

    @functools.wraps(count)
    def set_count(value: int) -> int:
        before = count(value)
        if value == 0 and before < 0:
            frames.here.dealt_with = False
        elif value < 0 and before == 0 and frames.here.dealt_with:
            return 1
        return int(before)

    return set_count


def _in_any_stance(choose: Any, types: Any) -> Any:
    """Some stances (torch.compiler.set_stance) refuse frames that are not compiled yet, or count them."""

    @functools.wraps(choose)
    def callback_from_stance(callback: Any) -> Any:
        chosen = choose(callback)
        if chosen is callback or not callable(chosen):
            return chosen

        @functools.wraps(chosen)
        def convert(frame: Any, *args: Any, **kwargs: Any) -> Any:
            return _leave_alone(types) if _sees_remora(frame) else chosen(frame, *args, **kwargs)

        return convert

    return callback_from_stance


def change(dynamo: ModuleType) -> None:
    """Changes Dynamo, once it is loaded. Idempotent."""
    from torch._dynamo import convert_frame, eval_frame, types

    wrapper = convert_frame.CatchErrorsWrapper
    if hasattr(wrapper.__call__, "_remora"):
        return
    from torch._dynamo.variables.builder import VariableBuilder
    from torch._subclasses.fake_tensor import FakeTensor

    convert, build, new = wrapper.__call__, VariableBuilder.__call__, FakeTensor.__new__

    @functools.wraps(convert)
    def call(self: Any, frame: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(getattr(self, "_torchdynamo_orig_backend", None), "_export", False):
            return convert(self, frame, *args, **kwargs)
        if _sees_remora(frame):
            return _leave_alone(types)
        outer = frames.here.tracing
        frames.here.tracing = True
        try:
            return convert(self, frame, *args, **kwargs)
        except _Met:
            frames.known.add(frame.f_code)
            return _leave_alone(types)
        finally:
            frames.here.tracing = outer

    @functools.wraps(build)
    def take_in(self: Any, value: Any) -> Any:
        if isinstance(value, RemoraTensor) and not frames.here.ours:
            raise _Met if frames.here.tracing else NotSupported(_NOT_EXPORTED)
        return build(self, value)

    @functools.wraps(new)
    def make(cls: Any, fake_mode: Any, elem: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
        if device.type == "remora" and frames.here.tracing and not frames.here.ours:
            raise _Met
        return new(cls, fake_mode, elem, device, *args, **kwargs)

    call._remora = True  # type: ignore[attr-defined]
    wrapper.__call__ = call
    VariableBuilder.__call__ = take_in
    FakeTensor.__new__ = staticmethod(make)
    eval_frame._callback_from_stance = _in_any_stance(eval_frame._callback_from_stance, types)
    if hasattr(eval_frame, "set_fullgraph_compiled_frame_count"):
        eval_frame.set_fullgraph_compiled_frame_count = _counted(
            eval_frame.set_fullgraph_compiled_frame_count
        )


def install() -> None:
    """Now if Dynamo is loaded, else when it is: loading it takes a second, and most programs never do."""
    when_loaded(_DYNAMO, change)


def probe() -> str | None:
    """What is wrong with the change, if anything. Does not load Dynamo."""
    if waits(_DYNAMO):
        return None
    module = sys.modules.get(f"{_DYNAMO}.convert_frame")
    done = module is not None and hasattr(module.CatchErrorsWrapper.__call__, "_remora")
    return None if done else "Dynamo compiles frames with remora tensors"
