"""Modules whose calls repeat: they are captured op by op until their guards are known, then as a whole.

`Route` stands where PyTorch keeps the compiled call of a module (`Module._compiled_call_impl`), which it leaves out
of copies and of what is saved. The first calls run as ever. When enough have been alike, a thread of its own traces
one on ghosts (device/guards.py), and the program goes on meanwhile. From then on a call whose guards hold appends its
rows at once (device/whole.py), and any other runs as ever.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import queue
import sys
import threading
import weakref
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as modules

from remora.capture.provenance import provenance
from remora.capture.recorder import Recorder
from remora.config import captures_whole_calls
from remora.device.counters import counters
from remora.device.dispatch import noticed
from remora.device.guards import Tree, trace, trampoline
from remora.device.scratch import Unfit, ghosts_of
from remora.device.sink import bound
from remora.device.tensor import RemoraTensor
from remora.device.whole import MAX_DIFFERENT, Missed, Unknown, Whole

ENOUGH = 16  # calls that were alike, before one is traced: shorter programs never pay for it
MAX_TRACES = 4  # of one module: other modes, other inputs
MAX_KINDS = 64  # of calls that are counted apart
# How long the thread that traces goes on when another one wants to: the program waits so long after each message.
SWITCH_S = 0.0003
LOOK_EVERY = 7  # segments: prime, so that every place of a period has its turn
_numbers = itertools.count(1)
_segments = itertools.count(1)


class _Here(threading.local):
    inside = False  # a call of a module that has a route


_here = _Here()


@dataclass
class Kind:
    """Calls whose arguments look alike. calls: since the last trace. before: ghosts of the call before the one that
    will be traced, which show what changes from call to call."""

    calls: int = 0
    failed: bool = False
    before: list[RemoraTensor] | None = None


@dataclass
class Job:
    """A call to be traced: its arguments and those of the call before, as ghosts."""

    route: Route
    kind: Kind
    module: Any
    args: Any
    kwargs: Any
    ghosts: list[RemoraTensor]
    before: list[RemoraTensor]
    inference: bool


@dataclass
class Route:
    """The calls of one module.

    wholes: traced calls, the last one that was met first. reasons: why calls are not captured as a whole.
    """

    module: weakref.ref[Any]
    wholes: list[Whole] = field(default_factory=list)
    kinds: dict[Any, Kind] = field(default_factory=dict)
    traces: int = 0
    last: Kind | None = None  # that was traced
    warming: bool = False
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trampoline = trampoline(next(_numbers))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        if _here.inside or not _plain(module):
            return module._call_impl(*args, **kwargs)
        _here.inside = True
        try:
            return self._call(module, args, kwargs)
        finally:
            _here.inside = False

    def _call(self, module: Any, args: Any, kwargs: Any) -> Any:
        whole = self._guarded(module, args, kwargs)
        if whole is not None:
            try:
                result = whole.call(module, args, kwargs)
            except Missed:
                pass
            except Unknown as unknown:
                counters.route = "warming"
                return self._learned(whole, unknown, module, args, kwargs)
            else:
                whole.used = True
                counters.whole_calls += 1
                counters.route = "guarded"
                return result
        counters.route = "warming" if self.warming else "lazy"
        if not self.warming and self.traces < MAX_TRACES:
            self._count(module, args, kwargs)
        return module._call_impl(*args, **kwargs)

    def _guarded(self, module: Any, args: Any, kwargs: Any) -> Whole | None:
        """The traced call that this is another one of."""
        locals_ = {"module": module, "args": args, "kwargs": kwargs}
        inference = torch.is_inference_mode_enabled()
        for number, whole in enumerate(self.wholes):
            if whole.inference == inference and whole.holds(locals_):
                if number:
                    self.wholes.insert(0, self.wholes.pop(number))
                return whole
        return None

    def _learned(self, whole: Whole, unknown: Unknown, module: Any, args: Any, kwargs: Any) -> Any:
        """Runs op by op and takes down what is recorded."""
        recorder, _ = bound.need()
        if recorder.tape is not None:
            return module._call_impl(*args, **kwargs)
        recorder.tape = []
        try:
            result = module._call_impl(*args, **kwargs)
            with recorder.lock:
                pieces = [*recorder.tape, recorder.piece()]
        finally:
            recorder.tape = None
        whole.learn(unknown, pieces, sys._getframe())
        if whole.different >= MAX_DIFFERENT:
            self.wholes.remove(whole)
            if self.last is not None:
                self.last.failed = True
            self.reasons.append(whole.reason)
        return result

    # -- warming up

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        kind = _kind(args, kwargs)
        if len(self.kinds) >= MAX_KINDS and kind not in self.kinds:
            self.kinds.clear()
        known = self.kinds.setdefault(kind, Kind())
        known.calls += 1
        if (
            self.wholes and not self.wholes[0].used
        ):  # a number that changes from call to call shows in a second trace
            known.calls = max(known.calls, ENOUGH - 1)
        if known.calls < ENOUGH - 1:
            return
        try:
            (args, kwargs), ghosts = ghosts_of((args, kwargs))
        except Exception as error:  # the program's own objects may refuse to be copied
            self._fail(known, error)
            return
        if known.calls == ENOUGH - 1 or known.before is None:
            known.before = ghosts
            return
        self.warming = True
        self.traces += 1
        inference = torch.is_inference_mode_enabled()
        job = Job(self, known, module, args, kwargs, ghosts, known.before, inference)
        self.last = known
        known.calls, known.before = 0, None
        tracer.submit(job)

    def warm(self, job: Job) -> None:
        """Traces a call; in the thread that traces."""
        try:
            _mark_what_changes(job)
            with torch.inference_mode(job.inference), torch.no_grad():
                traced = trace(self.trampoline, job.module, job.args, job.kwargs)
                whole = Whole(traced, Tree(job.module), _inputs(traced, job))
        except Exception as error:  # Dynamo raises anything; the calls are captured op by op as before
            self._fail(job.kind, error)
        else:
            self.wholes.insert(0, whole)
        finally:
            self.warming = False

    def _fail(self, kind: Kind, error: Exception) -> None:
        kind.failed = True
        self.reasons.append(f"{type(error).__name__}: {error}")


def _plain(module: Any) -> bool:
    """Whether nothing else wants to see the ops of this call, and nothing runs around it."""
    recorder: Recorder | None = bound.recorder
    return (
        recorder is not None
        and recorder.whole_calls
        and not torch.is_grad_enabled()
        and not (
            module._backward_hooks
            or module._backward_pre_hooks
            or module._forward_hooks
            or module._forward_pre_hooks
            or modules._global_backward_pre_hooks
            or modules._global_backward_hooks
            or modules._global_forward_hooks
            or modules._global_forward_pre_hooks
        )
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and not torch._C._is_any_autocast_enabled()
        and not torch._C._get_tracing_state()
        and not torch.autograd.profiler._is_profiler_enabled
        and not torch.is_anomaly_enabled()
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.compiler._is_compiling_flag is False
    )


def _kind(args: Any, kwargs: Any) -> Any:
    """What calls that count as alike have in common: other sizes than one may differ."""
    return tuple(
        (name, type(item), tuple([n == 1 for n in item.shape]) if isinstance(item, torch.Tensor) else None)
        for name, item in (*enumerate(args), *kwargs.items())
    )


def _mark_what_changes(job: Job) -> None:
    """Tells Dynamo which sizes differ from call to call."""
    import torch._dynamo

    if len(job.before) != len(job.ghosts):
        return
    for now, before in zip(job.ghosts, job.before, strict=True):
        if now.dim() == before.dim():
            for dimension, (size, was) in enumerate(zip(now.shape, before.shape, strict=True)):
                if size != was:
                    torch._dynamo.maybe_mark_dynamic(now, dimension)


def _inputs(traced: Any, job: Job) -> list[Any]:
    """The graph's inputs in the call that was traced."""
    found: list[Any] = []

    def keep(*inputs: Any) -> Any:
        found.extend(inputs)
        raise Missed

    try:
        traced.bind(keep)(job.module, job.args, job.kwargs)
    except Missed:
        return found
    raise Unfit("the call does not reach its graph")


class Tracer:
    """The thread that traces, one call at a time."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._waiting = 0
        self._idle = threading.Condition()
        self._pid = os.getpid()

    def submit(self, job: Job) -> None:
        if self._pid != os.getpid():  # a fork has no threads but its own
            self.__init__()  # type: ignore[misc]
        with self._idle:
            self._waiting += 1
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="remora-tracer", daemon=True)
            self._thread.start()
            atexit.register(self._end)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            before_s = sys.getswitchinterval()
            sys.setswitchinterval(SWITCH_S)
            try:
                job.route.warm(job)
            finally:
                del job
                sys.setswitchinterval(before_s)
                with self._idle:
                    self._waiting -= 1
                    self._idle.notify_all()

    def wait(self, timeout_s: float | None) -> bool:
        """Blocks until nothing is being traced; False if that took too long."""
        with self._idle:
            return self._idle.wait_for(lambda: self._waiting == 0, timeout_s)

    def _end(self) -> None:
        """The interpreter ends: a trace must not go on in what is taken down."""
        thread = self._thread
        if thread is not None and thread.ident is not None and self._pid == os.getpid() and self._waiting:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )
            thread.join(5.0)


tracer = Tracer()


def wait_warm(timeout_s: float | None = None) -> bool:
    """Blocks until no module's calls are being traced any more; False after `timeout_s` seconds."""
    return tracer.wait(timeout_s)


def notice(module: Any) -> None:
    """A row is new, and this was the outermost module: its calls get a route, unless it has a compiled call."""
    if module is None or not isinstance(module, torch.nn.Module) or isinstance(module, torch.fx.GraphModule):
        return
    if module._compiled_call_impl is None and captures_whole_calls():
        module.__dict__["_compiled_call_impl"] = Route(weakref.ref(module))


def opens(frame: FrameType) -> None:
    """A segment starts here. Looks now and then for the outermost module, which takes some microseconds."""
    if next(_segments) % LOOK_EVERY == 0 and not torch.is_grad_enabled():
        notice(provenance(frame).model)


def install() -> None:
    """Called when the device is registered."""
    noticed.notice, noticed.opens = notice, opens
