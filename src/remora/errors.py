"""The exception tree. Every message says what went wrong, where, and what to do next."""

from __future__ import annotations


class RemoraError(RuntimeError):
    """Root of everything that Remora raises on purpose."""


class UsageError(RemoraError):
    """The program asked for something that Remora's interface does not allow."""


class NotSupported(RemoraError, NotImplementedError):
    """A PyTorch feature that the remora device refuses, by name."""


class ConnectError(RemoraError, ConnectionError):
    """The executor could not be reached; the message names its address."""


class NobodyListens(ConnectError):
    """The host is there and nothing listens on the port."""


class NobodyAnswers(ConnectError):
    """The peer said nothing for as long as it was waited for."""


class AuthError(ConnectError):
    """The executor refused the token."""


class Refused(ConnectError):
    """The executor answered and refused: versions, limits, quotas."""


class SessionLost(RemoraError, ConnectionError):
    """The session's state is gone (lease ended, executor restarted, worker died)."""


class Disconnected(RemoraError):
    """A tensor was used after its session ended."""


class ProtocolError(RemoraError):
    """The peer sent bytes that break the protocol; the connection is not usable any more."""


class PlanError(RemoraError):
    """A plan that must not run: a stage rule is broken, or the pool cannot hold the program."""


class ExecutorError(RemoraError):
    """An operation failed on the executor; names op, shapes, module path and the user's line."""


class ExecutorIndexError(ExecutorError, IndexError):
    """The executor's PyTorch raised IndexError."""


class ExecutorValueError(ExecutorError, ValueError):
    """The executor's PyTorch raised ValueError."""


class ExecutorTypeError(ExecutorError, TypeError):
    """The executor's PyTorch raised TypeError."""


class OutOfMemory(ExecutorError, MemoryError):
    """The executor has no memory left; says what was asked and what is held by whom."""


class UnsupportedOp(ExecutorError, NotImplementedError):
    """The executor's PyTorch does not have, or does not allow, the op."""
