"""Arms as processes: exact against local, failures named, and nothing outlives the run, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from warm_python import run_program

# A process of its own: forks of one that has threads and a session would not be those of the experiment.
HEAD = """
import os, signal, sys, time
import torch
from remora.bench import arms, links, workloads
from remora.bench.arms import LOCAL, ONE, Arm, forked
from remora.bench.forks import ArmFailed
torch.set_num_threads(1)
"""


def test_an_arm_is_compared_with_local_and_counted() -> None:
    done = run_program(
        HEAD
        + """
with links.executors(1, calibrate=False) as pool:
    assert pool.kind == "loopback"
    with forked([LOCAL, ONE], workloads.SUITE["mlp-adam"].make(True), pool) as (local, one):
        assert local.open() == one.open() != ()
        for progress in (0.0, 1.0):
            ours, theirs = local.step(progress), one.step(progress)
            assert ours.digests == theirs.digests
            assert ours.spent["ops"] == 0 < theirs.spent["ops"]
            assert 0 < theirs.cpu_s and 0 < theirs.seconds < 30
        assert one.step(1.0).digests != theirs.digests  # it trains on, and local did not
print("right")
"""
    )
    assert done.stdout == "right\n", done.stderr


def test_what_fails_in_an_arm_is_named_and_the_others_go_on() -> None:
    done = run_program(
        HEAD
        + """
def refuses(device):
    if device != "cpu":
        raise LookupError(f"no weights for {device}")
    return workloads.SUITE["seed"].make(True)(device)

def failure(act):
    try:
        act()
    except ArmFailed as error:
        return str(error)

with links.executors(1, calibrate=False) as pool, forked([LOCAL, ONE, LOCAL], refuses, pool) as (local, one, other):
    local.open()
    print(failure(one.open))
    other.open()
    os.kill(other.pid, 9)
    print(failure(lambda: other.step(0.0)))
    os.kill(local.pid, signal.SIGSTOP)
    arms.OPEN_S = 0.1
    print(failure(lambda: local.step(0.0)))
"""
    )
    first, second, third = done.stdout.splitlines()
    assert first == "LookupError: no weights for remora"
    assert second in (
        "its process ended while it was asked to prepare",
        "its process is gone: [Errno 32] Broken pipe",
        "its process is gone: [Errno 104] Connection reset by peer",
    )
    assert third == "no answer to prepare within 0 s"


def test_a_killed_run_leaves_no_process_behind() -> None:
    code = (
        HEAD
        + """
with links.executors(1, calibrate=False) as pool:
    with forked([LOCAL, ONE], workloads.SUITE["seed"].make(True), pool) as both:
        for arm in both:
            arm.open()
        print(*[arm.pid for arm in both], *[one._process.pid for one in pool.processes], flush=True)
        time.sleep(100)
"""
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while living := [pid for pid in pids if _lives(pid)]:
        assert time.monotonic() < until, living
        time.sleep(0.1)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False if os.path.isdir("/proc") else _signals(pid)


def _signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
