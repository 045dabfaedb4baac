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
from collections.abc import Iterable
from types import CodeType, ModuleType
from typing import Any

import torch

from remora.device.counters import counters
from remora.device.late import waits, when_loaded
from remora.device.tensor import RemoraTensor
from remora.errors import NotSupported

_CONVERT = "torch._dynamo.convert_frame"
_DEPTH = 4  # of containers and objects that are looked into for a tensor before a trace is begun
_MAX_ITEMS = 64  # of one container
_NOT_EXPORTED = (
    "Dynamo cannot trace remora tensors for an export. Use torch.export.export(…, strict=False), which traces "
    "with fake tensors, or export from a CPU copy of the module and move the result"
)


class _Here(threading.local):
    tracing = False  # a frame of this thread is being traced
    dealt_with = False  # see _counted


class Frames:
    """known: code that reaches remora tensors by a way that only a trace finds, so that it is traced once."""

    def __init__(self) -> None:
        self.known: weakref.WeakSet[CodeType] = weakref.WeakSet()
        self.here = _Here()


frames = Frames()


class _Met(BaseException):
    """A trace has met the remora device. Not an Exception: those are taken for failures of the compiler."""


def holds_remora(item: Any, depth: int = _DEPTH) -> bool:
    """Whether a remora tensor is found in what a frame can see at once: containers, modules, attributes."""
    if isinstance(item, torch.Tensor):
        return isinstance(item, RemoraTensor)
    if isinstance(item, torch.nn.Module):
        return _any_remora(item.parameters()) or _any_remora(item.buffers())
    if depth == 0 or isinstance(item, (str, bytes, int, float, type(None), type, ModuleType)):
        return False
    if isinstance(item, torch.device):
        return item.type == "remora"
    if isinstance(item, dict):
        return _any_holds(item.values(), depth)
    if isinstance(item, (list, tuple, set, frozenset)):
        return _any_holds(item, depth)
    attributes = getattr(item, "__dict__", None)
    return isinstance(attributes, dict) and not callable(item) and _any_holds(attributes.values(), depth)


def _any_remora(tensors: Iterable[torch.Tensor]) -> bool:
    return any(isinstance(tensor, RemoraTensor) for tensor in tensors)


def _any_holds(items: Iterable[Any], depth: int) -> bool:
    first = [item for item, _ in zip(tuple(items), range(_MAX_ITEMS), strict=False)]
    return any(holds_remora(item, depth - 1) for item in first)


def _sees_remora(frame: Any) -> bool:
    if frame.f_code in frames.known or _any_holds(frame.f_locals.values(), _DEPTH):
        return True
    names = frame.f_globals
    return any(name in names and holds_remora(names[name], 1) for name in frame.f_code.co_names)


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


def change(convert_frame: ModuleType) -> None:
    """Changes Dynamo, once it is loaded. Idempotent."""
    wrapper = convert_frame.CatchErrorsWrapper
    if hasattr(wrapper.__call__, "_remora"):
        return
    from torch._dynamo import eval_frame, types
    from torch._dynamo.variables.builder import VariableBuilder
    from torch._subclasses.fake_tensor import FakeTensor

    convert, build, new = wrapper.__call__, VariableBuilder.__call__, FakeTensor.__new__

    @functools.wraps(convert)
    def call(self: Any, frame: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self._torchdynamo_orig_backend, "_export", False):
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
        if isinstance(value, RemoraTensor):
            raise _Met if frames.here.tracing else NotSupported(_NOT_EXPORTED)
        return build(self, value)

    @functools.wraps(new)
    def make(cls: Any, fake_mode: Any, elem: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
        if device.type == "remora" and frames.here.tracing:
            raise _Met
        return new(cls, fake_mode, elem, device, *args, **kwargs)

    call._remora = True  # type: ignore[attr-defined]
    wrapper.__call__ = call
    VariableBuilder.__call__ = take_in
    FakeTensor.__new__ = staticmethod(make)
    if hasattr(eval_frame, "set_fullgraph_compiled_frame_count"):
        eval_frame.set_fullgraph_compiled_frame_count = _counted(
            eval_frame.set_fullgraph_compiled_frame_count
        )


def install() -> None:
    """Now if Dynamo is loaded, else when it is: loading it takes a second, and most programs never do."""
    when_loaded(_CONVERT, change)


def probe() -> str | None:
    """What is wrong with the change, if anything. Does not load Dynamo."""
    if waits(_CONVERT):
        return None
    module = sys.modules.get(_CONVERT)
    done = module is not None and hasattr(module.CatchErrorsWrapper.__call__, "_remora")
    return None if done else "Dynamo compiles frames with remora tensors"
