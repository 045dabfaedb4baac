"""One executor for all examples."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from executor_process import executor_process


@pytest.fixture(scope="session")
def executor():
    with executor_process("--memory", "2GiB") as executor:
        yield executor


@pytest.fixture
def connected(executor):
    """A session of this process."""
    import remora

    remora.connect(executor.url)
    yield remora
    remora.disconnect()
