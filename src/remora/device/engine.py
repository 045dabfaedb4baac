"""The autograd engine where remora tensors are in the graph: on the caller's thread, and with errors that get out.

The engine guards the stream of each node, also while an error of a hook or of an op leaves the node. The guard of a
device in Python is then called with the error pending, in a place where C++ ends the process if it fails. So the
guard takes the error away, and the engine raises it again at the end of the backward pass.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch.autograd import Variable

from remora.device.sink import bound

_PRIVATEUSE1 = torch._C._autograd.DeviceType.PrivateUse1  # type: ignore[attr-defined]
_pending = threading.local()


class _Look:
    """A call of an object that is no function ends with the interpreter looking for a pending error. If there is
    one, it is pending no longer, but the cause of a SystemError."""

    def __call__(self) -> None: ...


_look = _Look()


class StreamGuard(torch._C._acc.DeviceGuard):  # type: ignore[name-defined,misc]
    """What PyTorch's C++ asks for streams and devices. All of it asks `type_`, and nothing else."""

    def type_(self) -> Any:
        try:
            _look()
        except SystemError as error:
            _pending.error = error.__cause__
        return _PRIVATEUSE1


class CallersThread(type(Variable._execution_engine)):  # type: ignore[misc]
    """The autograd engine. Once a session was there, a graph may hold remora tensors anywhere: its roots may be
    CPU tensors or functorch's wrappers."""

    def run_backward(self, *args: Any, **kwargs: Any) -> Any:
        if bound.unused:
            return super().run_backward(*args, **kwargs)
        with torch.autograd.set_multithreading_enabled(False):
            _pending.error = None
            try:
                return super().run_backward(*args, **kwargs)
            except SystemError:
                error, _pending.error = _pending.error, None
                if error is None:
                    raise
        raise error


def install() -> None:
    if not isinstance(Variable._execution_engine, CallersThread):
        Variable._execution_engine = CallersThread()


def probe() -> str | None:
    engine = Variable._execution_engine
    if not isinstance(engine, CallersThread):
        return "the autograd engine is not the one that stays on the caller's thread"
    noting = _Noting()
    leaf = torch.zeros(1, requires_grad=True)
    try:
        Variable._execution_engine = noting
        (leaf * 2).backward()
    finally:
        Variable._execution_engine = engine
    return None if noting.calls else "torch.autograd.backward does not use Variable._execution_engine"


class _Noting:
    calls = 0

    def run_backward(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1
