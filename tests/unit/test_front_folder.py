import os
import subprocess
import sys

import pytest

from remora.cli.serve import parse_nbytes
from remora.executor.front.folder import private_folder


def test_the_folder_is_private_and_goes(tmp_path):
    with private_folder(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert f"-{os.getpid()}-" in folder.name
    assert list(tmp_path.iterdir()) == []


def test_folders_of_dead_fronts_go_and_others_stay(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True)
    stale = tmp_path / f"remora-front-{int(dead.stdout)}-abc"
    (stale / "blobs").mkdir(parents=True)
    alive = tmp_path / f"remora-front-{os.getppid()}-abc"
    alive.mkdir()
    foreign = tmp_path / "remora-front-notes"
    foreign.mkdir()
    with private_folder(tmp_path) as folder:
        assert sorted(tmp_path.iterdir()) == sorted([alive, foreign, folder])


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("20GiB", 20 << 30), ("512MB", 512_000_000), ("1.5 KiB", 1536), ("0", 0), ("7", 7), ("2g", 2 * 10**9)],
)
def test_memory_is_written_with_units(text, nbytes):
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "x", "3x", "-1", "1e9", "GiB"])
def test_bad_memory_is_refused(text):
    with pytest.raises(ValueError, match="--memory"):
        parse_nbytes(text)
