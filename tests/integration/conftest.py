"""One executor for all tests that need no other, and two more for those about several."""

from __future__ import annotations

import pytest
import torch
from executor_process import Proxy, executor_process
from front_process import front_process


@pytest.fixture(scope="session")
def executor():
    with executor_process("--memory", "2GiB") as executor:
        yield executor


@pytest.fixture(autouse=True)
def one_thread():
    """As the executor of the tests: with more, PyTorch adds in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def connected(executor):
    """A session of this process."""
    import remora

    remora.connect(executor.url)
    yield remora
    remora.disconnect()


@pytest.fixture(scope="session")
def second():
    with executor_process("--memory", "2GiB") as executor:
        yield executor


@pytest.fixture(scope="session")
def third():
    with executor_process("--memory", "2GiB") as executor:
        yield executor


@pytest.fixture(scope="session")
def executors(executor, second):
    """Addresses of two."""
    return [executor.url, second.url]


@pytest.fixture
def both(executors):
    """A session in which each of two executors is a device."""
    import remora

    remora.connect(executors, placement="explicit")
    yield
    torch.remora.set_device(0)
    remora.disconnect()


@pytest.fixture
def proxy(executor):
    proxy = Proxy(executor.port)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    """A front with a worker that has no device, and tokens of two tenants."""
    tokens = tmp_path_factory.mktemp("front") / "tokens"
    tokens.write_text("alpha acme/ann\nbeta acme/bob\ngamma other/eve\n")
    with front_process("--token-file", str(tokens)) as front:
        yield front
