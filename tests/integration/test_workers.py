"""Worker processes: one a tenant; what dies, or stands still, takes nothing with it that is another's."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from executor_process import executor_process, status_until
from front_process import Caller, step

import remora
from remora.errors import OutOfMemory, Refused, SessionLost
from remora.ir.graph import Template
from remora.ir.node import Node, Slot
from remora.transport.http import HttpTransport
from remora.wire.messages import Define, OpenSession, Put, Run, Site

BROKEN = Path(__file__).with_name("broken_worker.py")
HERE = re.escape(__file__)

OTHER = """
import sys, torch, remora
remora.connect(sys.argv[1], token=sys.argv[2] if len(sys.argv) > 2 else None)
x = torch.ones(int(sys.argv[3]) if len(sys.argv) > 3 else 2, device="remora") + 1
print(x[:2].tolist(), flush=True)
sys.stdin.readline()
try:
    print((x[:2] + 1).tolist(), flush=True)
except remora.errors.SessionLost as error:
    print(error)
remora.disconnect()
"""


@contextmanager
def other_program(*args: str):
    """A second program with a session; `ask` lets it use its tensor once more, and gives what it says."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "[2.0, 2.0]\n"
    asked = []

    def ask() -> str:
        asked.append(process.communicate("\n", timeout=60)[0])
        return asked[0]

    try:
        yield ask
    finally:
        if not asked:
            process.communicate("\n", timeout=60)


@contextmanager
def connected(url: str, token: str | None = None, within_s: float = 20.0):
    """Tries again while the executor says that a worker is starting."""
    until = time.monotonic() + within_s
    while True:
        try:
            remora.connect(url, token)
            break
        except Refused as refused:
            if "is starting" not in str(refused) or time.monotonic() > until:
                raise
    try:
        yield
    finally:
        remora.disconnect()


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("a acme/ann\na2 acme/bob\nb bank/bea\nc corp/cid\n")
    return str(path)


# ---------------------------------------------------------------- liveness


def test_a_stopped_worker_is_noticed_and_its_sessions_are_told():
    with executor_process(stuck_s=2.0) as executor:
        with connected(executor.url), other_program(executor.url) as ask:
            x = torch.ones(2, device="remora") + 1
            assert x.tolist() == [2, 2]
            os.kill(executor.worker_pid(), signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(SessionLost, match="no sign of life for 2 s"):
                x.tolist()
            assert time.monotonic() - started < 8
            assert "no sign of life for 2 s" in ask()
        executor.wait_worker(2)
        with connected(executor.url):
            assert torch.ones(2, device="remora").tolist() == [1, 1]


def test_one_long_op_is_a_living_worker():
    with executor_process(stuck_s=1.0) as executor, connected(executor.url):
        a = torch.full((3000, 3000), 0.001, device="remora")
        started = time.monotonic()
        values = torch.linalg.matrix_power(a, 3)[0, 0].item()  # one row, some seconds, no Python in it
        assert values == pytest.approx(9e-3, rel=1e-3)
        while time.monotonic() - started < 2.5:
            torch.linalg.matrix_power(a, 2)[0, 0].item()
        assert executor.status().workers_started == 1


# ---------------------------------------------------------------- a device that breaks


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 2)

    def forward(self, ids):
        return self.table(ids) * 2


@torch.no_grad()
def test_a_bad_index_that_breaks_the_device_names_its_line_and_what_is_lost():
    with executor_process(worker=BROKEN) as executor:
        with connected(executor.url), other_program(executor.url) as ask:
            net = Net().to("remora")
            kept = torch.ones(3, device="remora") + 1
            assert kept.tolist() == [2, 2, 2]
            y = net(torch.tensor([1, 12], device="remora"))
            with pytest.raises(SessionLost) as caught:
                y.tolist()
            text = str(caught.value)
            line = rf"called at {HERE}:\d+, in"
            for said in (
                r"its device failed \(CUDA error: device-side assert triggered\) with float32\[1, 2\] at row 1 ",
                rf"which is aten\.mul\.Tensor, {line} Net \(Net\); a GPU reports late, and what reads indices ",
                rf"before it is aten\.embedding\.default, {line} Net\.table \(Embedding\)",
            ):
                assert re.search(said, text), text
            assert re.search(
                r"Its tensors are gone: \d+ tensors, [\d,]+ bytes, among them weights of Net \(table\.weight\)",
                text,
            ), text
            told = ask()
            assert "the worker died (CUDA error: device-side assert triggered)" in told
            assert "while it ran aten.mul.Tensor of another session" in told
            assert "float32[1, 2]" not in told
            assert "test_workers.py" not in told
        executor.wait_worker(2)
        with connected(executor.url):
            assert net.table.weight.shape == (10, 2)
            with pytest.raises(remora.errors.Disconnected):
                net.table.weight.sum().item()
            assert torch.ones(2, device="remora").tolist() == [1, 1]


# ---------------------------------------------------------------- a worker a tenant


async def crash(url: str, token: str) -> None:
    """A kernel that follows a wild index, from a client of this tenant."""
    async with Caller(url, token) as eve:
        socket = await eve.connect(await eve.open(), 1)
        node = Node("aten.adaptive_max_pool2d_backward.default", (Slot(0), Slot(1), Slot(2)))
        await socket.send_bytes(
            step(
                1,
                Put(1, "float32", (1, 2, 2), bytes(16)),
                Put(2, "float32", (1, 4, 4), bytes(64)),
                Put(3, "int64", (1, 2, 2), struct.pack("<4q", *[10**12] * 4)),
                Define(0, Template((node,)).body),
                Site(0, 0),
                Run(4, 0, (0, 0, 1, 0, 0, 1, 0, 2, 0, 0, 2, 0, 3, 0, 0), keep=(0, 0)),
            )
        )
        await socket.receive(timeout=20)


def test_tenants_do_not_share_a_process_and_a_crash_stays_at_home(tokens):
    with executor_process("--token-file", tokens, "--memory", "1GiB") as executor:
        with connected(executor.url, "a"), other_program(executor.url, "a2") as ann_and_bob:
            assert len(executor.worker_pids()) == 2  # theirs, and one for whoever comes
            x = torch.ones(2, device="remora") + 1
            assert x.tolist() == [2, 2]
            status_until(executor, lambda status: status.workers_started == 2, "a")
            asyncio.run(crash(executor.url, "b"))
            assert (x + 1).tolist() == [3, 3]
            assert ann_and_bob() == "[3.0, 3.0]\n"


def test_the_number_of_workers_is_bounded_and_an_idle_one_makes_room(tokens):
    with executor_process("--token-file", tokens, "--max-workers", "2") as executor:
        with connected(executor.url, "a"):
            status_until(executor, lambda status: status.workers_started == 2, "a")
            with other_program(executor.url, "b") as bea:
                transport = HttpTransport(executor.url, "c")
                with pytest.raises(Refused, match=r"2 tenants, which is its limit \(--max-workers\)"):
                    transport.open_session(OpenSession(2, 2, "2"), 5.0)
                transport.close()
                assert bea() == "[3.0, 3.0]\n"
            before = executor.worker_pids()
        with connected(executor.url, "c"):
            assert torch.ones(2, device="remora").tolist() == [1, 1]
            assert set(executor.worker_pids()) - set(before)  # a process of its own, not one handed on


def test_tenants_share_the_memory(tokens):
    with executor_process("--token-file", tokens, "--memory", "256MiB") as executor:
        with connected(executor.url, "a"):
            status_until(executor, lambda status: status.workers_started == 2, "a")
            with other_program(executor.url, "b", str(40 << 20)) as bea:  # 160 MiB
                torch.ones(10 << 20, device="remora").sum().item()
                many = torch.ones(40 << 20, device="remora")
                with pytest.raises(OutOfMemory, match=r"other tenants 1\d\d,\d\d\d,\d\d\d bytes"):
                    many.sum().item()
                bea()
            status_until(executor, lambda status: status.used_nbytes < 64 << 20, "a")
            many = torch.ones(40 << 20, device="remora")
            assert many.sum().item() == 40 << 20


def test_a_tenant_keeps_to_its_share(tokens):
    options = ("--token-file", tokens, "--memory", "256MiB", "--tenant-memory", "64MiB")
    with executor_process(*options) as executor, connected(executor.url, "a"):
        many = torch.ones(20 << 20, device="remora")
        with pytest.raises(OutOfMemory, match=r"67,108,864 for one tenant \(--tenant-memory\)"):
            many.sum().item()
        with pytest.raises(Refused, match=r"tenant acme holds .*--tenant-memory"):
            torch.ones(20 << 20).to("remora")
        assert torch.ones(2, device="remora").tolist() == [1, 1]


def test_a_tenants_templates_are_bounded_over_its_sessions(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "from remora.executor.worker import __main__ as worker\n"
        "worker.MAX_TENANT_TEMPLATES_NBYTES = 300\nworker.main()\n"
    )
    with executor_process(worker=script) as executor, connected(executor.url):
        with pytest.raises(OutOfMemory, match="templates of the tenant's sessions take 300 bytes"):
            add_in_many_ways(torch.ones(2, device="remora"))
        assert torch.ones(2, device="remora").tolist() == [1, 1]


def add_in_many_ways(x: torch.Tensor) -> None:
    for times in range(9):
        for _ in range(times):
            x = x + 1
        x.tolist()
