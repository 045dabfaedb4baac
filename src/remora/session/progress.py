"""A progress line for uploads that take more than a second; quiet when nobody watches."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHOW_AFTER_S = 1.0
BURST_ENDS_S = 5.0  # of no upload


class UploadProgress:
    """Counts a burst of uploads; the total is not known, since the program moves one tensor after another."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._started = self._last = 0.0
        self._nbytes = 0
        self._shown: tuple[Progress, TaskID] | None = None

    def add(self, nbytes: int) -> None:
        now = time.monotonic()
        if now - self._last > BURST_ENDS_S:
            self._started, self._nbytes = now, 0
        self._last = now
        self._nbytes += nbytes
        if self._shown is None and now - self._started > SHOW_AFTER_S and sys.stderr.isatty():
            self._show()
        if self._shown is not None:
            progress, task = self._shown
            progress.update(task, completed=self._nbytes)

    def _show(self) -> None:
        from rich.console import Console  # a third of a program's import time, and few need it
        from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        progress = Progress(
            TextColumn(f"uploading to {self.address}"),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        progress.start()
        self._shown = (progress, progress.add_task("upload", total=None))

    def done(self) -> None:
        """Takes the line away."""
        if self._shown is not None:
            self._shown[0].stop()
            self._shown = None
