"""What nothing on this machine can beat, measured in the run whose numbers it bounds."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any

import torch

from remora.bench.delay_proxy import delay_proxy
from remora.bench.echo import echo, round_trips_s
from remora.bench.harness import Impossible

_BLOCK_NBYTES = 256 << 20  # larger than caches
_READS, _ROUND_TRIPS = 7, 9
_TIMER_SLACK = 0.98  # a sleep may end a little early by another clock


def read_bytes_per_s() -> float:
    """How fast one thread reads memory, at best: a matrix-vector product, which is what decoding does."""
    side = int((_BLOCK_NBYTES / 4) ** 0.5)
    matrix, vector = torch.ones(side, side), torch.ones(side)
    seconds = []
    for _ in range(_READS):
        started = time.perf_counter()
        torch.mv(matrix, vector)
        seconds.append(time.perf_counter() - started)
    return matrix.nbytes / min(seconds)


def weights_nbytes(model: Any) -> int:
    """Of the weights that a token of batch 1 must read: all but embeddings that are looked up; a tied one is read."""
    looked_up = {module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    read = {weight for weight in model.parameters() if weight not in looked_up} | {head.weight}
    return sum(weight.nbytes for weight in read)


def round_trip_ms(rtt_ms: float) -> float:
    """What raw sockets measure behind a proxy of that delay, median; 0: behind none."""
    with ExitStack() as stack:
        port = stack.enter_context(echo())
        if rtt_ms:
            port = stack.enter_context(delay_proxy("127.0.0.1", port, rtt_ms / 2e3))
        return statistics.median(round_trips_s(port, _ROUND_TRIPS)) * 1e3


def check_not_before(what: str, took_ms: float, least_ms: float) -> None:
    """Raises Impossible if something took less than it must."""
    if took_ms < least_ms * _TIMER_SLACK:
        raise Impossible(f"{what} took {took_ms:.3g} ms, and cannot in less than {least_ms:.3g}")
