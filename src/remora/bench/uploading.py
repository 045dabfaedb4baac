"""Weights to an executor against the same bytes through a raw socket; ties and second clients."""

from __future__ import annotations

import copy
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import remora
from remora.bench.harness import Impossible, Report, check_physics, interleave

# Receives into memory that was never touched, as weights need it; or, to learn what the link can do, into one
# small buffer again and again. Each connection starts with a line: kind and number of bytes.
_RECEIVER = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    peer, _ = server.accept()
    with peer, peer.makefile("rb", buffering=0) as lines:
        kind, nbytes = lines.readline().split()
        left = int(nbytes)
        into = memoryview(bytearray(left if kind == b"keep" else 1 << 20))
        at = 0
        while left:
            got = peer.recv_into(into[at:] if kind == b"keep" else into[: min(left, 1 << 20)])
            if not got:
                break
            left -= got
            at += got
        peer.sendall(b"k")
"""


@dataclass(frozen=True)
class Upload:
    seconds: float
    sent_nbytes: int


def measure(
    report: Report, quick: bool, rng: random.Random, model: Any, reconnect: Callable[[], None]
) -> None:
    """The bars on upload speed, tied weights, and a second client with the same weights. Changes the model."""
    weights = [parameter.data for parameter in model.parameters()]  # a tied one is there once
    unique_nbytes = sum(weight.nbytes for weight in weights)
    trials = 3 if quick else 5
    report.say(f"upload of {unique_nbytes / 1e6:.0f} MB: {trials} trials each way")
    with subprocess.Popen([sys.executable, "-c", _RECEIVER], stdout=subprocess.PIPE, text=True) as receiver:
        try:
            assert receiver.stdout is not None
            port = int(receiver.stdout.readline())
            arms = {
                "raw socket": lambda: _raw(port, "keep", weights),
                "remora": lambda: _new_weights(model, weights, reconnect),
            }
            dropped = [_raw(port, "drop", weights) for _ in range(3)]  # what the link can do at best
            for arm in arms.values():
                arm()
            found = interleave(arms, trials, rng) | {"raw socket, bytes dropped": dropped}
        finally:
            receiver.kill()
    rates = {name: [unique_nbytes / upload.seconds / 1e9 for upload in got] for name, got in found.items()}
    medians = {name: report.row("weight upload", name, "GB/s", rate) for name, rate in rates.items()}
    link = max(max(rate) for name, rate in rates.items() if name != "remora") * 1e9
    for upload in found["remora"]:
        check_physics("weight upload", upload.sent_nbytes, upload.seconds, link)
    report.bar("weight upload / raw socket", medians["remora"] / medians["raw socket"], ">=", 0.6)
    sent = max(upload.sent_nbytes for upload in found["remora"])
    if sent < unique_nbytes * 0.98:  # small tensors travel with the steps
        raise Impossible(f"{sent} of {unique_nbytes} bytes were sent: the weights were not new")
    report.bar("weights sent / unique weights (ties once)", sent / unique_nbytes, "<=", 1.01)

    reconnect()
    again = _remora(model)
    report.row("same weights, second session", "remora", "s", [again.seconds])
    report.bar("second client: share of weights sent", again.sent_nbytes / unique_nbytes, "<", 0.01)


def _raw(port: int, kind: str, weights: list[torch.Tensor]) -> Upload:
    buffers = [memoryview(weight.numpy().reshape(-1)).cast("B") for weight in weights]
    nbytes = sum(buffer.nbytes for buffer in buffers)
    with socket.create_connection(("127.0.0.1", port)) as peer:
        started = time.perf_counter()
        peer.sendall(f"{kind} {nbytes}\n".encode())
        for buffer in buffers:
            peer.sendall(buffer)
        if peer.recv(1) != b"k":
            raise Impossible("the receiver ended early")
        return Upload(time.perf_counter() - started, nbytes)


def _new_weights(model: Any, weights: list[torch.Tensor], reconnect: Callable[[], None]) -> Upload:
    """Uploads weights that the executor has never seen, in a session of their own."""
    for weight in weights:
        weight += 1e-3
    reconnect()
    return _remora(model)


def _remora(model: Any) -> Upload:
    moved = copy.deepcopy(model)
    torch.remora.synchronize()  # type: ignore[attr-defined]
    before = remora.stats()
    started = time.perf_counter()
    moved.to("remora")
    torch.remora.synchronize()  # type: ignore[attr-defined]
    return Upload(time.perf_counter() - started, (remora.stats() - before).weights_bytes)
