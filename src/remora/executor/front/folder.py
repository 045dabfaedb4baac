"""The front's private folder, in shared memory where there is some; gone when the front is gone."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = re.compile(r"remora-front-(\d+)-.+")
_LOCK = "lock"
_MIN_SHARED_NBYTES = 1 << 30  # containers often come with a toy /dev/shm of 64 MiB


def base_folder() -> Path:
    shared = Path("/dev/shm")
    if os.access(shared, os.W_OK):
        volume = os.statvfs(shared)
        if volume.f_blocks * volume.f_frsize >= _MIN_SHARED_NBYTES:
            return shared
    return Path(tempfile.gettempdir())


@contextmanager
def private_folder(base: Path) -> Iterator[Path]:
    """A folder that only this user reads, removed at the end; folders of dead fronts are removed first."""
    remove_stale(base)
    folder = Path(tempfile.mkdtemp(prefix=f"remora-front-{os.getpid()}-", dir=base))
    lock = _locked(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_stale(base: Path) -> None:
    """Removes this user's folders whose front is dead.

    A lock tells, not only the pid: two containers that share /dev/shm do not see each other's processes.
    """
    for folder in base.glob("remora-front-*"):
        match = _NAME.fullmatch(folder.name)
        if match is None or folder.is_symlink() or not _is_ours(folder) or _runs(int(match[1])):
            continue
        lock = _locked(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _is_ours(folder: Path) -> bool:
    try:
        return folder.stat().st_uid == os.getuid()
    except FileNotFoundError:
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _locked(folder: Path) -> int | None:
    """Takes the folder's lock; None if a live front has it."""
    try:
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:  # removed meanwhile
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
