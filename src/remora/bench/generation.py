"""`generate` as it is measured: what one call took, with clocks read before each forward."""

from __future__ import annotations

import itertools
import queue
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

import remora

SETTLED = 8  # tokens after which a call is steady: what depends on where it starts is then told


@dataclass(frozen=True)
class Call:
    """One generate. steady: from the second forward to the last, so without start and prefill."""

    tokens: torch.Tensor
    ms_per_token: float  # the whole call
    steady_ms: float  # median step
    steady_cpu_ms: float  # of this process, mean step


def timed(model: Any, ids: torch.Tensor, n: int) -> Call:
    """Generates `n` tokens greedily."""
    marks: list[tuple[float, float]] = []
    with before_step(model, lambda: marks.append((time.perf_counter(), time.process_time()))):
        started = time.perf_counter()
        tokens = model.generate(ids, max_new_tokens=n, do_sample=False).cpu()
        wall_s = time.perf_counter() - started
    steps = [(after[0] - before[0]) * 1e3 for before, after in itertools.pairwise(marks[1:])]
    cpu_s = marks[-1][1] - marks[1][1]
    made = tokens.shape[1] - ids.shape[1]
    return Call(tokens, wall_s / made * 1e3, statistics.median(steps), cpu_s / len(steps) * 1e3)


@dataclass(frozen=True)
class Traffic:
    """What one generate cost on the wire and in waits, by the session's own counters.

    steps: bytes both ways of each steady token. whole: the same a token, with all that the call cost.
    round_trips: waits per steady token. before_prefill: waits before the first forward.
    """

    steps: list[int]
    whole: float
    round_trips: float
    before_prefill: int


def traffic(model: Any, ids: torch.Tensor, n: int, **options: Any) -> Traffic:
    """Counts one generate of `n` tokens; those after the first few are steady."""
    marks: list[Any] = []
    with before_step(model, lambda: marks.append(remora.stats())):
        before = remora.stats()
        model.generate(ids, max_new_tokens=n, do_sample=False, **options)
        whole = remora.stats() - before
    steps = [after - earlier for earlier, after in itertools.pairwise(marks[SETTLED:])]
    return Traffic(
        [_both_ways(step) for step in steps],
        _both_ways(whole) / len(marks),
        sum(step.round_trips for step in steps) / len(steps),
        (marks[0] - before).round_trips,
    )


def _both_ways(spent: Any) -> int:
    return int(spent.bytes_sent + spent.bytes_received)


@contextmanager
def before_forward(model: Any, act: Callable[[], object]) -> Any:
    """Calls `act` before each forward of the model."""
    hook = model.register_forward_pre_hook(lambda module, args: (act(), None)[1])
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def before_step(model: Any, act: Callable[[], object]) -> Any:
    """Calls `act` before each forward of a generate. A hook would keep calls from being captured as a whole."""
    prepare = model.prepare_inputs_for_generation

    def acted(*args: Any, **kwargs: Any) -> Any:
        prepared = prepare(*args, **kwargs)
        act()
        return prepared

    model.prepare_inputs_for_generation = acted
    try:
        yield
    finally:
        del model.prepare_inputs_for_generation


class Collect(BaseStreamer):
    """A streamer as TextStreamer is one: looks at every token as it comes."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.seen += value.flatten().tolist()

    def end(self) -> None:
        pass


class Queued(BaseStreamer):
    """A streamer as TextIteratorStreamer is one: another thread takes the tokens."""

    def __init__(self) -> None:
        self.queue: queue.Queue[list[int] | None] = queue.Queue()

    def put(self, value: torch.Tensor) -> None:
        self.queue.put(value.flatten().tolist())

    def end(self) -> None:
        self.queue.put(None)


def streamed_from_thread(generate: Callable[..., object]) -> list[int]:
    """The tokens of a generate that runs in a thread of its own, taken here."""
    streamer = Queued()
    failures: list[BaseException] = []

    def body() -> None:
        try:
            generate(streamer=streamer)
        except BaseException as error:
            failures.append(error)
            streamer.end()

    thread = threading.Thread(target=body)
    thread.start()
    seen: list[int] = []
    while (tokens := streamer.queue.get()) is not None:
        seen += tokens
    thread.join()
    if failures:
        raise failures[0]
    return seen
