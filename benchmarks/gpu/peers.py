"""Values from executor to executor of one host: HTTP, the host's memory, the device's memory, side by side.

    python benchmarks/gpu/peers.py [--device cuda:0] [--sizes 4KiB,1MiB,64MiB,1GiB] [--trials 7]

Every arm has two executors of its own, all on one device; the trials of the arms take turns. A push counts from the
client's message until the destination's stream, which waited for it, goes on. On a CPU a stand-in takes the place of
the device's memory, so that everything but CUDA's part runs. Every value is compared bit by bit. Where the device's
memory cannot be lent or opened, values go another way: that is printed, with the reason. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "integration"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
from executor_process import ExecutorProcess
from lane import ADD_IN_PLACE, Lane, lanes

from remora.cli.serve import parse_nbytes
from remora.cli.status import nbytes_text
from remora.executor.worker.cuda_ipc import CudaMemory
from remora.ir.graph import Template
from remora.ir.node import Hole, Node
from remora.wire.messages import Barrier, Free, Pushed, Run

ROOT = Path(__file__).resolve().parents[2]
SIZES = "4KiB,64KiB,128KiB,1MiB,16MiB,64MiB,256MiB,1GiB"
ANSWER_S = 90.0
ADDS = 60  # in place, before a push and after it
ARANGE = Template((Node("aten.arange.default", (Hole("int"),)),))
HOST_ONLY = """
from remora.executor.worker import __main__ as worker, exports
exports.memory_of = lambda device: None
worker.main()
"""


def log(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- ceilings, and CUDA IPC by itself


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_gb_per_s(source: torch.Tensor, target: torch.Tensor, device: torch.device) -> float:
    seconds = []
    for _ in range(7):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return source.numel() / 1e9 / statistics.median(seconds)


def ceilings(device: torch.device) -> dict[str, float]:
    """Copies of 256 MiB in this process, GB/s."""
    here = torch.ones(256 << 20, dtype=torch.uint8, device=device)
    host = torch.ones(256 << 20, dtype=torch.uint8)
    found = {"device_to_device": copy_gb_per_s(here, torch.empty_like(here), device)}
    if device.type == "cuda":
        found["device_to_host"] = copy_gb_per_s(here, host, device)
        found["host_to_device"] = copy_gb_per_s(host, here, device)
    return found


def open_child(device: torch.device) -> None:
    """Opens the handles that stdin names, copies, and says how long it took and what came."""
    memory = CudaMemory(device)
    for line in sys.stdin:
        handle, nbytes = line.split()
        target = torch.empty(int(nbytes), dtype=torch.uint8, device=device)
        try:
            started = time.perf_counter()
            memory.read(bytes.fromhex(handle), [(0, target)])
            seconds = time.perf_counter() - started
            answer: dict[str, Any] = {"seconds": seconds, "sum": int(target.sum(dtype=torch.int64))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def bare_ipc(device: torch.device, sizes: list[int], trials: int) -> list[dict[str, Any]]:
    """CUDA IPC between two processes, without executors: what it costs, or why it cannot be."""
    command = [sys.executable, __file__, "--open-child", "--device", str(device)]
    rows = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        memory = CudaMemory(device)
        for nbytes in sizes:
            row: dict[str, Any] = {"nbytes": nbytes}
            try:
                started = time.perf_counter()
                export = memory.make(nbytes)
                row["make_s"] = time.perf_counter() - started
                export.tensor.fill_(3)
                memory.settle()
                seconds = []
                for _ in range(trials):
                    child.stdin.write(f"{export.handle.hex()} {nbytes}\n")
                    child.stdin.flush()
                    if not select.select([child.stdout], [], [], ANSWER_S)[0]:
                        child.kill()
                    answer = json.loads(
                        child.stdout.readline() or '{"error": "the other process gave no answer"}'
                    )
                    if "error" in answer:
                        row["error"] = answer["error"]
                        break
                    assert answer["sum"] == 3 * nbytes, answer
                    seconds.append(answer["seconds"])
                if seconds:
                    row["open_copy_close_s"] = statistics.median(seconds)
                started = time.perf_counter()
                export.tensor = torch.empty(0)
                memory.free(export)
                row["free_s"] = time.perf_counter() - started
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"
            rows.append(row)
            if "error" in row:
                break
        with suppress(OSError):
            child.stdin.close()
    return rows


# ---------------------------------------------------------------- executors


class Arm:
    """Two executors and a session on each."""

    def __init__(self, name: str, executors: tuple[ExecutorProcess, ExecutorProcess]) -> None:
        self.name, self.executors = name, executors
        self.segment = 0
        self.seconds: dict[int, list[tuple[float, float]]] = {}
        self.error: dict[int, str] = {}
        self.over = ""  # why it goes on no more

    async def begin(self, a: Lane, b: Lane) -> None:
        self.a, self.b = a, b
        await a.peer(0, b)
        self.arange = await a.define(ARANGE)
        self.add = await a.define(ADD_IN_PLACE)

    def counters(self) -> dict[str, float]:
        found = self.executors[0].status().principals.get("local/user", {})
        return {name: found.get(name, 0.0) for name in ("host_pushes", "device_pushes", "missed_pushes")}

    async def settled(self, lane: Lane) -> None:
        ticket = lane.ticket()
        await lane.send(Barrier(ticket))
        await lane.answer(ticket, ANSWER_S)

    async def numbers(self, nbytes: int) -> tuple[int, int, int]:
        self.segment += 1
        name = self.segment, 0, 0
        await self.a.send(Run(self.segment, self.arange, holes=(0, nbytes // 8), keep=(0, 0)))
        return name

    async def push(self, name: tuple[int, int, int]) -> tuple[float, float]:
        """Seconds until the destination went on, and what the source's front measured."""
        await self.settled(self.a)
        await self.b.wait(name)
        waiting = self.b.ticket()
        await self.b.send(Barrier(waiting))
        started = time.perf_counter()
        ticket = await self.a.start_push(0, name)
        pushed = await self.a.answer(ticket, ANSWER_S)
        if not isinstance(pushed, Pushed):
            raise RuntimeError(pushed.message)
        await self.b.answer(waiting, ANSWER_S)
        return time.perf_counter() - started, pushed.seconds

    async def check(self, name: tuple[int, int, int], nbytes: int, more: int = 0) -> None:
        (payload,) = await self.b.fetch(name)
        came = torch.frombuffer(bytearray(await self.b.bytes_of(payload)), dtype=torch.int64)
        expected = torch.arange(nbytes // 8) + more
        assert torch.equal(came, expected), f"{self.name}: {nbytes} bytes did not come as they were"

    async def free(self, name: tuple[int, int, int]) -> None:
        for lane in (self.a, self.b):
            await lane.send(Free(name))

    async def trial(self, nbytes: int, keep: bool, check: bool) -> None:
        name = await self.numbers(nbytes)
        took = await self.push(name)
        if check:
            await self.check(name, nbytes)
        await self.free(name)
        if keep:
            self.seconds.setdefault(nbytes, []).append(took)

    async def order(self, nbytes: int) -> None:
        """Much work before the push and after it: what came is what stood between the two."""
        name = await self.numbers(nbytes)
        ticket = -1
        for step in range(2 * ADDS):
            self.segment += 1
            if step == ADDS:
                ticket = await self.a.start_push(0, name)
            await self.a.add(self.add, self.segment, name)
        await self.b.wait(name)
        pushed = await self.a.answer(ticket, ANSWER_S)
        assert isinstance(pushed, Pushed), pushed
        await self.check(name, nbytes, ADDS)
        await self.free(name)


async def measure(arms: list[Arm], sizes: list[int], trials: int) -> None:
    async with AsyncExitStack() as stack:
        for arm in arms:
            a, b = arm.executors
            await arm.begin(*await stack.enter_async_context(lanes(a.url, b.url)))
        for nbytes in sizes:
            log(nbytes_text(nbytes))
            for trial in range(-2, trials):  # two to warm up: connections, pages, what is near
                for arm in arms:
                    if nbytes in arm.error or arm.over:
                        continue
                    try:
                        await arm.trial(nbytes, keep=trial >= 0, check=trial in (-1, trials - 1))
                    except RuntimeError as error:
                        arm.error[nbytes] = str(error)
                        log(f"{arm.name}: {error}")
                    except TimeoutError:
                        arm.over = arm.error[nbytes] = f"no answer within {ANSWER_S:g} s"
                        log(f"{arm.name}: {arm.over}")
        for arm in arms:
            for _ in range(0 if arm.over else 3):
                await arm.order(min(64 << 20, max(sizes)))


# ---------------------------------------------------------------- report


def report(arms: list[Arm], sizes: list[int]) -> list[dict[str, Any]]:
    rows = []
    for nbytes in sizes:
        for arm in arms:
            row: dict[str, Any] = {"nbytes": nbytes, "arm": arm.name, "error": arm.error.get(nbytes, "")}
            took = arm.seconds.get(nbytes)
            if took:
                whole, sent = (sorted(times) for times in zip(*took, strict=True))
                row |= {
                    "trials": len(took),
                    "push_s": statistics.median(whole),
                    "push_min_s": whole[0],
                    "push_max_s": whole[-1],
                    "sent_s": statistics.median(sent),
                    "sent_gb_per_s": nbytes / 1e9 / statistics.median(sent),
                }
            rows.append(row)
    return rows


def missed(executor: ExecutorProcess) -> list[str]:
    return [
        line.partition("on this host, ")[2]
        for line in executor.said().splitlines()
        if "on this host," in line
    ]


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'size':>10} {'arm':8} {'push ms':>10} {'min':>10} {'max':>10} {'sent ms':>10} {'sent GB/s':>10}")
    for row in rows:
        size = nbytes_text(row["nbytes"])
        if "push_s" not in row:
            print(f"{size:>10} {row['arm']:8} {row['error'][:100]}")
            continue
        times = [1e3 * row[name] for name in ("push_s", "push_min_s", "push_max_s", "sent_s")]
        print(f"{size:>10} {row['arm']:8}", *(f"{t:10.3f}" for t in times), f"{row['sent_gb_per_s']:10.2f}")


def run(device: torch.device, sizes: list[int], trials: int, memory: str) -> dict[str, Any]:
    options = ("--memory", memory, "--device", str(device))
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "kernel": platform.platform(),
        "ceilings_gb_per_s": ceilings(device),
    }
    if device.type == "cuda":
        result["bare_ipc"] = bare_ipc(device, sizes, trials)
        for row in result["bare_ipc"]:
            log(f"CUDA IPC by itself: {row}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        host_only = Path(folder) / "host_only_worker.py"
        host_only.write_text(HOST_ONLY)
        lending = None if device.type == "cuda" else ROOT / "tests" / "integration" / "lending_worker.py"
        kinds = [("http", None, ("--no-same-host",)), ("host", host_only, ()), ("device", lending, ())]
        log(f"starting {2 * len(kinds)} executors")
        with ThreadPoolExecutor(len(kinds)) as threads:  # a context takes long to make
            starting = [
                [threads.submit(ExecutorProcess, *options, *more, worker=worker) for _ in range(2)]
                for _, worker, more in kinds
            ]
        for started in starting:
            for start in started:
                if not start.exception():
                    stack.callback(start.result().stop)
        arms = [
            Arm(name, (a.result(), b.result())) for (name, _, _), (a, b) in zip(kinds, starting, strict=True)
        ]
        asyncio.run(measure(arms, sizes, trials))
        result["rows"] = report(arms, sizes)
        result["counters"] = {arm.name: arm.counters() for arm in arms}
        result["missed"] = {arm.name: missed(arm.executors[0]) for arm in arms}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--memory", default="12GiB", help="of each executor; a push may use a quarter of it")
    parser.add_argument("--open-child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    if options.open_child:
        open_child(device)
        return
    sizes = [parse_nbytes(size) for size in options.sizes.split(",")]
    result = run(device, sizes, options.trials, options.memory)
    print_table(result["rows"])
    for name, why in result["missed"].items():
        for text in why:
            print(f"{name}: did not go the shortest way: {text}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
