"""The embedded executor: `remora serve` as a child of this process, for programs that name no address."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence

from remora.errors import ConnectError

START_TIMEOUT_S = 60.0
_READY = "remora executor ready at "


class EmbeddedExecutor:
    """Starts when first needed, ends with this process (its standard input closes)."""

    def __init__(self, *options: str, behind: Sequence[str] = ()) -> None:
        """options: of `remora serve`. behind: words that start the command, such as those of a namespace."""
        self.options, self.behind = options, tuple(behind)
        self.address = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Its address; starts it if it does not run.

        Raises:
            ConnectError: it did not start; quotes what it said.
        """
        if self._process is not None and self._process.poll() is None:
            return self.address
        threads = max(1, (os.cpu_count() or 2) - 1)  # one core is left to the program
        command = [
            *self.behind,
            sys.executable,
            "-m",
            "remora.cli",
            "serve",
            "--port",
            "0",
            "--until-stdin-closes",
        ]
        command += ["--threads", str(threads)]
        with tempfile.TemporaryFile() as log:  # not the program's stderr: nobody asked for an executor's log
            self._process = subprocess.Popen(
                [*command, *self.options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the program, not for its executor
            )
            line = self._first_line(self._process)
            if not line.startswith(_READY):
                self.stop()
                log.seek(0)
                said = log.read()[-2000:].decode(errors="replace").strip()
                raise ConnectError(
                    f"the embedded executor did not start; it said: {said or line or 'nothing'}"
                )
        self.address = line.removeprefix(_READY)
        return self.address

    def forget(self) -> None:
        """In a fork: the executor is the parent's, and must end with it even if the fork lives on."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None and process.stdout is not None:
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # not ours to wait for

    def _first_line(self, process: subprocess.Popen[bytes]) -> str:
        lines: list[bytes] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        reader.join(START_TIMEOUT_S)
        return lines[0].decode(errors="replace").strip() if lines else ""

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(8.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
