"""The exception tree: what a program that catches the usual types gets."""

from __future__ import annotations

import inspect

import pytest

from remora import errors

TREE = [
    error for _, error in inspect.getmembers(errors, inspect.isclass) if error.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_every_error_is_ours_and_a_runtime_error(error: type[Exception]) -> None:
    assert issubclass(error, errors.RemoraError)
    assert issubclass(error, RuntimeError)  # what local PyTorch raises
    assert inspect.getdoc(error)
    assert str(error("what went wrong")) == "what went wrong"


@pytest.mark.parametrize(
    ("ours", "usual"),
    [
        (errors.NotSupported, NotImplementedError),
        (errors.ConnectError, ConnectionError),
        (errors.AuthError, errors.ConnectError),
        (errors.Refused, errors.ConnectError),
        (errors.SessionLost, ConnectionError),
        (errors.ExecutorIndexError, IndexError),
        (errors.ExecutorValueError, ValueError),
        (errors.ExecutorTypeError, TypeError),
        (errors.OutOfMemory, MemoryError),
        (errors.UnsupportedOp, NotImplementedError),
        (errors.UnsupportedOp, errors.ExecutorError),
    ],
)
def test_error_is_caught_as_its_usual_type(ours: type[Exception], usual: type[Exception]) -> None:
    with pytest.raises(usual):
        raise ours("x")


def test_lost_session_is_no_refused_connection() -> None:
    assert not issubclass(errors.SessionLost, errors.ConnectError)
