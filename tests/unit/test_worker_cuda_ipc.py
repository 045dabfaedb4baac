"""Which calls of the CUDA runtime lend memory and open it, and what becomes of their errors; without a GPU."""

from __future__ import annotations

import contextlib

import pytest
import torch

from remora.executor.worker import cuda_ipc
from remora.executor.worker.cuda_ipc import CudaError, CudaMemory
from remora.executor.worker.exports import CannotExport, CannotOpen

OUT_OF_MEMORY = 2
MB = 1 << 20


class Runtime:
    """Notes the calls. faults: by call, the codes with which the next ones fail; 0: it succeeds."""

    def __init__(self, **faults):
        self.faults, self.calls = {name: list(codes) for name, codes in faults.items()}, []

    def call(self, name, *arguments):
        self.calls.append(name)
        code = self.faults.get(name, []).pop(0) if self.faults.get(name) else 0
        if code:
            raise CudaError(code, f"{name}: CUDA error {code}, as the test wants")
        if name == "cudaMalloc":
            arguments[0]._obj.value = 4096 * len(self.calls)
            self.calls[-1] = f"cudaMalloc {arguments[1]}"
        elif name == "cudaIpcOpenMemHandle":
            arguments[0]._obj.value = 1 << 20
        elif name == "cudaMemcpyAsync":
            self.calls[-1] = f"copy {arguments[2]} from {arguments[1] - (1 << 20)} on {arguments[4]}"


@pytest.fixture
def made(monkeypatch):
    def make(**faults) -> tuple[CudaMemory, Runtime]:
        memory, runtime = CudaMemory(torch.device("cpu")), Runtime(**faults)
        memory._runtime = runtime
        stream = type(
            "Stream", (), {"cuda_stream": 7, "synchronize": lambda self: runtime.calls.append("sync")}
        )
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream())
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: runtime.calls.append("empty"))
        monkeypatch.setattr(
            memory, "_looked_at", lambda address, nbytes: torch.empty(nbytes, dtype=torch.uint8)
        )
        return memory, runtime

    return make


def test_it_is_made_in_grains_that_share_nothing_with_other_memory(made):
    memory, runtime = made()
    export = memory.make(3 * MB)
    assert (export.nbytes, len(export.handle)) == (4 * MB, 64)
    memory.free(export)
    assert runtime.calls == [f"cudaMalloc {4 * MB}", "cudaIpcGetMemHandle", "cudaFree"]


def test_where_no_memory_can_be_lent_it_is_freed_and_not_tried_again(made):
    memory, runtime = made(cudaIpcGetMemHandle=[801])
    with pytest.raises(CannotExport, match="cudaIpcGetMemHandle: CUDA error 801") as caught:
        memory.make(1)
    assert caught.value.lasting
    assert runtime.calls[-1] == "cudaFree"


@pytest.mark.parametrize(("codes", "fails"), [([OUT_OF_MEMORY], False), ([OUT_OF_MEMORY] * 2, True)])
def test_what_pytorch_keeps_is_given_back_before_memory_is_said_to_lack(made, codes, fails):
    memory, runtime = made(cudaMalloc=codes)
    if fails:
        with pytest.raises(CannotExport) as caught:
            memory.make(1)
        assert not caught.value.lasting
    else:
        assert memory.make(1).nbytes == 2 * MB
    assert runtime.calls[:2] == ["cudaMalloc", "empty"]


def test_everything_is_copied_before_it_is_closed(made):
    memory, runtime = made()
    targets = [(0, torch.empty(10, dtype=torch.uint8)), (16, torch.empty(5, dtype=torch.uint8))]
    memory.read(bytes(64), targets)
    assert runtime.calls == [
        "cudaIpcOpenMemHandle",
        "copy 10 from 0 on 7",
        "copy 5 from 16 on 7",
        "sync",
        "cudaIpcCloseMemHandle",
    ]


@pytest.mark.parametrize("nbytes", [0, 63, 65, 128])
def test_a_handle_of_another_size_is_not_opened(made, nbytes):
    memory, runtime = made()
    with pytest.raises(CannotOpen, match=f"a handle has 64 bytes, not {nbytes}"):
        memory.read(bytes(nbytes), [])
    assert runtime.calls == []


def test_what_cannot_be_opened_or_copied_says_so_and_leaves_nothing_open(made):
    target = torch.empty(1, dtype=torch.uint8)
    memory, runtime = made(cudaIpcOpenMemHandle=[201])
    with pytest.raises(CannotOpen, match="CUDA error 201"):
        memory.read(bytes(64), [(0, target)])
    assert runtime.calls == ["cudaIpcOpenMemHandle"]
    memory, runtime = made(cudaMemcpyAsync=[1])
    with pytest.raises(CannotOpen, match="cudaMemcpyAsync: CUDA error 1"):
        memory.read(bytes(64), [(0, target)])
    assert runtime.calls[-2:] == ["sync", "cudaIpcCloseMemHandle"]


def test_a_process_without_pytorchs_runtime_lends_and_opens_nothing():
    if torch.cuda.is_available():
        pytest.skip("it is loaded")
    with pytest.raises(OSError, match="not loaded"):
        cuda_ipc._loaded_runtime()
