"""Programs in processes of their own that start at once: forks of a Python that has imported what takes long.

Most of a short program's time is `import torch`. Programs about imports, hash seeds or the interpreter's own start
need `subprocess` all the same.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

TORCH = ("torch",)
# The modules behind the names that `transformers` itself imports at first use.
TRANSFORMERS = (
    "torch",
    "transformers",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)
ENDS_S = 10.0  # for the process itself, with nothing left to run

# Each line of stdin asks for one program. Answers: its pid, then its exit code. What a program sees is what `python -c`
# would give it; Remora loads itself as it does at the end of `import torch`.
SERVER = """
import importlib, json, os, signal, sys, warnings
for name in sys.argv[1:]:
    importlib.import_module(name)
assert "remora" not in sys.modules

def asked():
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            return json.loads(line)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)

ask = asked()
for fd, path, how in ((0, os.devnull, os.O_RDONLY), (1, ask["stdout"], os.O_WRONLY), (2, ask["stderr"], os.O_WRONLY)):
    os.dup2(os.open(path, how), fd)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
os.environ.clear()
os.environ.update(ask["environment"])
os.chdir(ask["folder"])
sys.argv = ["-c", *ask["arguments"]]
if ask["warnings_are_errors"]:
    sys.warnoptions.append("error")
    warnings.simplefilter("error")
import remora_autoload
remora_autoload.autoload()
code = compile(ask["code"], "<string>", "exec")
for made in set(globals()) - {"code"}:
    if not made.startswith("__"):
        del globals()[made]
exec(globals().pop("code"))
"""


class WarmPython:
    """One such Python. Programs run one after another."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        atexit.register(self.close)

    def run(
        self,
        code: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        timeout_s: float,
        warnings_are_errors: bool,
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run of `python -c code`, with its output captured.

        Raises:
            subprocess.TimeoutExpired: it was killed.
        """
        with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
            ask: dict[str, Any] = {
                "code": code,
                "arguments": list(arguments),
                "environment": dict(environment),
                "folder": os.getcwd(),
                "warnings_are_errors": warnings_are_errors,
                "stdout": stdout.name,
                "stderr": stderr.name,
            }
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(ask) + "\n")
            until = time.monotonic() + timeout_s
            pid = int(self._line())
            if not select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                os.kill(pid, signal.SIGKILL)
                self._line()
                raise subprocess.TimeoutExpired(code, timeout_s, stdout.read(), stderr.read())
            returncode = int(self._line())
            return subprocess.CompletedProcess(["python", "-c"], returncode, stdout.read(), stderr.read())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the warm Python ended"
        return line

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(ENDS_S)
        self._process.stdout.close()


@cache
def warm_python(modules: Sequence[str]) -> WarmPython:
    return WarmPython(modules)


def run_program(
    code: str,
    *arguments: str,
    modules: Sequence[str] = TORCH,
    timeout_s: float = 60.0,
    warnings_are_errors: bool = True,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own. modules: what it has imported already."""
    return warm_python(modules).run(
        code, arguments, {**os.environ, **environment}, timeout_s, warnings_are_errors
    )


def run_command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a `remora` command in a process of its own; `options` as for `run_program`."""
    return run_program("from remora.cli.main import main; main()", *arguments, **options)
