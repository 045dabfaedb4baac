"""What a decode step costs the executor: recorded clients, replayed by a worker of this process at full speed.

    python benchmarks/gpu/graphs.py --models gpt2,llama-8b --out results.json

A client of an executor of its own process generates and is teacher-forced; what it said is recorded. The same
messages are then given, without waiting, to a worker here: interpreted and with graphs, one-token attention by the
kernel that eager takes (cuDNN's) and by flash. Logits are compared with local eager on the same GPU and with
eager's own spread. `--device cpu --tiny` checks the script where there is no GPU. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import struct
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "integration"))
sys.path.insert(0, str(Path(__file__).parent))

import msgspec
import torch
import transformers
from decode import NEW_TOKENS, PROMPT, forced_logits, log, make, spread, summary, timed_generate
from executor_process import executor_process

import remora
from remora.executor.hop import HEADER, BulkFile, Kind
from remora.executor.worker import program, tier
from remora.executor.worker import session as session_module
from remora.executor.worker.__main__ import Worker
from remora.executor.worker.graphs import CudaRecorder
from remora.executor.worker.session import WorkerSession
from remora.ops.dtypes import BY_NAME
from remora.wire.codec import decode_to_client, decode_to_executor
from remora.wire.messages import Fetch, Run, Values

ROOT = Path(__file__).resolve().parents[2]
GENERATES = 3
ARMS = ("interpreted", "graphs", "graphs, flash", "graphs, freed 8 tokens late", "graphs, timed")


def record(name: str, device: str, tiny: bool, ids: torch.Tensor, forced: torch.Tensor) -> dict[str, Any]:
    """What a client said in phases: making the model, generating, teacher forcing. With its own times."""
    path = Path(tempfile.mkdtemp()) / "recording"
    os.environ["REMORA_TEST_RECORD"] = str(path)
    ends, runs = [], []
    worker = ROOT / "tests" / "recording" / "recording_worker.py"
    with executor_process("--device", device, worker=worker) as executor:
        remora.connect(executor.url)
        model = make(name, "remora", tiny)
        torch.remora.synchronize()  # type: ignore[attr-defined]
        ends.append(path.stat().st_size)
        remote_ids = ids.to("remora")
        for _ in range(GENERATES):
            runs.append(timed_generate(model, remote_ids, "remora"))
            ends.append(path.stat().st_size)
        logits = forced_logits(model, remote_ids, forced.to("remora"))
        ends.append(path.stat().st_size)
        del model
        remora.disconnect()
    return {"path": path, "ends": ends, "logits": logits, "runs": runs}


class Hop:
    """Takes what the worker says; keeps the values that it was asked for."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        _, kind, _ = HEADER.unpack_from(data)
        if kind == Kind.REPLY:
            for message in decode_to_client(data[HEADER.size :]):
                if isinstance(message, Values):
                    self.values += [value.data or b"" for value in message.values]
        elif kind == Kind.BULK:
            self.values.append(
                Path(msgspec.msgpack.decode(data[HEADER.size :], type=BulkFile).path).read_bytes()
            )


def packets(recorded: dict[str, Any]) -> list[tuple[int, Kind, int, bytes, bool]]:
    """(phase, kind, session, body, whether it asks for values)."""
    found = []
    with open(recorded["path"], "rb") as file:
        while head := file.read(4):
            at = file.tell()
            kind, session, body, content = msgspec.msgpack.decode(
                file.read(struct.unpack("<I", head)[0]), type=tuple[int, int, bytes, bytes]
            )
            phase = sum(at > end for end in recorded["ends"])
            assert not content or kind not in (Kind.BLOB,), "weights are made on the executor"
            if kind in (Kind.OPEN, Kind.STEP, Kind.CLOSE):
                messages = decode_to_executor(body) if kind == Kind.STEP else ()
                asks = any(
                    isinstance(m, Fetch) or (isinstance(m, Run) and m.wants is not None) for m in messages
                )
                found.append((phase, Kind(kind), session, body, asks))
    return found


def late_frees(session: WorkerSession, tokens: int) -> Any:
    """Frees so many asked-for values late, as running ahead does."""
    queue: deque[list[Any]] = deque([[]])
    free = session._free_one
    session._free_one = lambda name: queue[-1].append(name)  # type: ignore[method-assign]

    def asked() -> None:
        queue.append([])
        if len(queue) > tokens:
            for name in queue.popleft():
                free(name)

    return asked


def timed(spent: dict[str, list[float]]) -> list[tuple[Any, str, Any]]:
    """Makes functions of the worker add up their seconds and calls; gives what was there before."""
    before = []

    def wrap(call: Any, label: str) -> Any:
        entry = spent.setdefault(label, [0.0, 0])

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                entry[0] += time.perf_counter() - started
                entry[1] += 1

        return wrapped

    places = [(Worker, "handle"), (session_module, "decode_run"), (tier, "walk"), (tier.Piece, "run")]
    places += [(tier.Piece, "ready"), (tier.Tier, "make_way"), (tier.Tier, "run")]
    places += [(WorkerSession, name) for name in ("_execute", "_keep", "_values", "_free_one")]
    for owner, name in places:
        before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, wrap(getattr(owner, name), name))
    before.append((program, "kernel_of", program.kernel_of))
    kernel_of = program.kernel_of
    program.kernel_of = lambda op, *rest: wrap(kernel_of(op, *rest), "op " + op._schema.name)
    before.append((CudaRecorder, "record", CudaRecorder.record))
    record = CudaRecorder.record

    def recorded(*args: Any) -> Any:
        replay, outputs, nbytes = record(*args)
        return wrap(replay, "launch"), outputs, nbytes

    CudaRecorder.record = recorded  # type: ignore[method-assign]
    return before


def replay(recorded: dict[str, Any], device: str, arm: str) -> dict[str, Any]:
    """One worker, all phases."""
    hop = Hop()
    steps: dict[int, list[float]] = {}
    host: dict[int, list[float]] = {}
    values: dict[int, list[bytes]] = {}
    spent: dict[str, list[float]] = {}
    known = packets(recorded)
    before = timed(spent) if "timed" in arm else []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        worker = Worker(hop, Path(folder), torch.device(device), 100 << 30)  # type: ignore[arg-type]
        if "graphs" not in arm:
            worker.device.recorder = None
        asked = None
        started = worked = 0.0
        for phase, kind, number, body, asks in known:
            if kind is Kind.CLOSE:
                break
            if not started:
                started, worked = time.perf_counter(), _worked(worker)
            hop.values.clear()
            worker.handle(kind, number, body)
            if kind is Kind.OPEN:
                worker.sessions[number].exact = "flash" not in arm
                asked = late_frees(worker.sessions[number], 8) if "late" in arm else None
            if asks:
                steps.setdefault(phase, []).append((time.perf_counter() - started) * 1e3)
                host.setdefault(phase, []).append((_worked(worker) - worked) * 1e3)
                values.setdefault(phase, []).extend(hop.values)
                started = 0.0
                if asked is not None:
                    asked()
                if phase == GENERATES and len(steps[phase]) == 8:
                    for entry in spent.values():
                        entry[:] = 0.0, 0
                if phase == GENERATES and len(steps[phase]) == 60 and spent:
                    us = {label: (round(s / 52 * 1e6), round(n / 52, 1)) for label, (s, n) in spent.items()}
                    spent = {}
                    log(f"us and calls a token: {sorted(us.items(), key=lambda item: -item[1][0])[:24]}")
        memory = graph_memory(worker)
        worker.handle(Kind.CLOSE, known[0][2], b"")
        del worker
    for owner, name, was in before:
        setattr(owner, name, was)
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    result: dict[str, Any] = {"arm": arm, **memory}
    for phase in range(1, GENERATES + 1):
        tail = steps[phase][9:]
        result[f"generate {phase}"] = {
            "ms_per_token": round(statistics.median(tail), 3),
            "mean": round(statistics.mean(tail), 3),
            "max": round(max(tail), 2),
            "host_ms": round(statistics.median(host[phase][9:]), 3),
            "first_ms": round(steps[phase][0], 1),
        }
    result["logits"] = torch.stack(
        [decoded(data) for data in values[GENERATES + 1] if len(data) > 1000][: len(recorded["logits"])]
    )
    return result


def decoded(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=BY_NAME["float32"])


def _worked(worker: Worker) -> float:
    return sum(session.device_s for session in worker.sessions.values())


def graph_memory(worker: Worker) -> dict[str, Any]:
    session = next(iter(worker.sessions.values()))
    found = {"used_nbytes": session.values.used_nbytes}
    if worker.device.device.type == "cuda":
        free_nbytes, total_nbytes = torch.cuda.mem_get_info()
        found["peak_nbytes"] = torch.cuda.max_memory_allocated()
        found["outside_of_pytorch_nbytes"] = total_nbytes - free_nbytes - torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
    if session.tiers is None:
        return found
    plans = [tier.plan for tier in session.tiers.all() if tier.plan is not None]
    return {
        **found,
        "programs": len(plans),
        "pieces": sum(piece is not None for plan in plans for piece in plan.pieces),
        "graphs_nbytes": session.tiers.nbytes,
        "replayed_runs": [plan.runs for plan in plans],
        "recordings": [tier.recordings for tier in session.tiers.all()],
        "left_interpreted": [
            (len(tier.watched.groups), tier.ran, tier.watched.runs, tier.watched.heavy, len(tier.moving))
            for tier in session.tiers.all()
            if tier.plan is None and tier.watched.runs
        ],
        "copied_inputs": [
            sum(len(piece.copies) for piece in plan.pieces if piece is not None) for plan in plans
        ],
    }


def measure(name: str, device: str, tiny: bool) -> dict[str, Any]:
    ids = torch.randint(1, 50000, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    model = make(name, device, tiny)
    local_ids = ids.to(device)
    cold = timed_generate(model, local_ids, device)
    local = [timed_generate(model, local_ids, device) for _ in range(2)]
    forced = cold["tokens"][:, PROMPT:]
    eager = forced_logits(model, local_ids, forced.to(device))
    result: dict[str, Any] = {
        "model": name,
        "local_eager_new_lengths_ms": round(cold["ms_per_token"], 3),
        "local_eager": summary(local),
        "eager_spread": [spread(eager, forced_logits(model, local_ids, forced.to(device))) for _ in range(2)],
        "eager_flash_decode": spread(eager, other_decode(model, local_ids, forced.to(device), "flash")),
        "eager_efficient_decode": spread(
            eager, other_decode(model, local_ids, forced.to(device), "efficient")
        ),
    }
    log(f"{name}: {result}")
    del model
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    recorded = record(name, device, tiny, ids, forced)
    result["remora_whole"] = summary(recorded["runs"][1:])
    result["remora_whole"]["new_lengths_ms"] = round(recorded["runs"][0]["ms_per_token"], 3)
    result["remora_whole"]["same_tokens"] = (
        int((recorded["runs"][-1]["tokens"] == cold["tokens"]).sum()) - PROMPT
    )
    result["remora_whole"]["against_eager"] = spread(eager, recorded["logits"])
    log(f"{name}: whole {result['remora_whole']}")
    arms: list[dict[str, Any]] = []
    base = None
    for arm in ARMS:
        found = replay(recorded, device, arm)
        logits = found.pop("logits")
        base = logits if arm == "interpreted" else base
        found["against_eager"] = spread(eager, logits)
        if base is not None:
            found["against_interpreted"] = spread(base, logits)
        log(f"{name}: {found}")
        arms.append(found)
    result["arms"] = arms
    return result


def other_decode(model: Any, ids: torch.Tensor, tokens: torch.Tensor, kernel: str) -> torch.Tensor:
    """Teacher-forced locally, the first pass as ever, attention of one token by another kernel."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def other(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        torch.backends.cuda.enable_cudnn_sdp(query.shape[-2] != 1)
        torch.backends.cuda.enable_flash_sdp(query.shape[-2] != 1 or kernel == "flash")
        try:
            return attend(query, *args, **kwargs)
        finally:
            torch.backends.cuda.enable_cudnn_sdp(True)
            torch.backends.cuda.enable_flash_sdp(True)

    torch.nn.functional.scaled_dot_product_attention = other
    try:
        return forced_logits(model, ids, tokens)
    finally:
        torch.nn.functional.scaled_dot_product_attention = attend


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="gpt2,llama-8b")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    report: dict[str, Any] = {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "remora": remora.__version__,
        },
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "prompt": PROMPT,
        "new_tokens": NEW_TOKENS,
        "dtype": "bfloat16",
        "models": [],
    }
    for name in args.models.split(","):
        report["models"].append(measure(name, args.device, args.tiny))
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
