"""Forks: processes that each hold what stays warm, a session most of all, and are asked in turn.

A fork shares what this process has made until then, models most of all, and this process itself never connects. A
request is a line of JSON that names a method of what the fork made; so is the reply.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol


class ArmFailed(Exception):
    """An arm that did not do what it was asked; holds its own error."""


class Answering(Protocol):
    """What a fork makes. Any other method answers a request of its name with what JSON can hold, or nothing."""

    def close(self) -> None: ...


class Fork:
    """One such process. Blocking; one request at a time."""

    def __init__(self, name: str, make: Callable[[], Answering]) -> None:
        """make: called in the fork."""
        self.name = name
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(theirs, name, make)
        theirs.close()
        self._socket = ours
        self._lines = ours.makefile("r")

    def ask(self, do: str, within_s: float, **arguments: Any) -> dict[str, Any]:
        """What the method `do` answers.

        Raises:
            ArmFailed: with the error of the fork, which goes on; or it is gone, or took too long and was ended.
        """
        self._socket.settimeout(within_s)
        try:
            self._socket.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            line = self._lines.readline()
        except TimeoutError:
            os.kill(self.pid, 9)
            raise ArmFailed(f"no answer to {do} within {within_s:.0f} s") from None
        except OSError as error:
            raise ArmFailed(f"its process is gone: {error}") from None
        if not line:
            raise ArmFailed(f"its process ended while it was asked to {do}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise ArmFailed(reply["error"])
        return reply

    def close(self) -> None:
        """The end of its socket ends it; what does not end by itself is ended."""
        self._lines.close()
        self._socket.close()
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with suppress(ChildProcessError):
                if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                    time.sleep(0.005)
                    continue
            return
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


def _child(asked: socket.socket, name: str, make: Callable[[], Answering]) -> None:
    """Never returns: what lies above on the stack is the parent's."""
    try:
        gc.freeze()  # what is inherited closes nothing here
        os.dup2(2, 1)  # the parent's stdout is for its own JSON
        _close_all_but(0, 1, 2, asked.fileno())
        with asked.makefile("rw") as lines:
            _answer(lines, make())
    except BaseException as error:
        print(f"arm {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def _close_all_but(*kept: int) -> None:
    """The executors' input among them: they end when the last copy of it closes."""
    for name in os.listdir("/dev/fd"):
        if int(name) not in kept:
            with suppress(OSError):  # the listing's own
                os.close(int(name))


def _answer(lines: Any, made: Answering) -> None:
    for line in lines:
        request = json.loads(line)
        try:
            reply = getattr(made, request.pop("do"))(**request) or {}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        lines.write(json.dumps(reply) + "\n")
        lines.flush()
    made.close()
