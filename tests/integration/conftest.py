"""One executor for all tests that need no other."""

from __future__ import annotations

import pytest
from executor_process import Proxy, executor_process


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


@pytest.fixture
def proxy(executor):
    proxy = Proxy(executor.port)
    yield proxy
    proxy.close()
