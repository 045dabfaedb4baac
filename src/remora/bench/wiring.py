"""Whether a program is captured alike whatever the collector, the clock and the executor do.

Each variant runs the same generates in a process of its own, which digests the (template, wiring) sequence of
everything that it sent.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

import remora
from remora.bench import models
from remora.bench.generation import before_forward
from remora.bench.harness import Report
from remora.bench.tap import Wiring
from remora.session.connect import current

PLAIN, EAGER_GC, NO_GC, SLEEPS, SLOW = VARIANTS = (
    "plain",
    "gc.set_threshold(1)",
    "gc.disable()",
    "random sleeps",
    "slow executor",
)
TIMEOUT_S = 300.0


def measure(report: Report, quick: bool, url: str) -> None:
    """The bar: no variant's sequence differs from the plain one's. Call it before this process connects."""
    workers = worker_pids()
    variants = [variant for variant in VARIANTS if variant != SLOW or workers]
    if not workers:
        report.say(f"{SLOW!r} is left out: it needs Linux, and an executor that this program started")
    # in a fork imports are there already; a fresh process has hash seeds of its own too
    context = multiprocessing.get_context("fork" if quick and hasattr(os, "fork") else "spawn")
    tokens = 6 if quick else 24
    differ, plain = 0, ""
    for variant in variants:
        with _stopping(workers) if variant == SLOW else nullcontext(), context.Pool(1) as pool:
            try:
                digest = pool.apply_async(run_variant, (variant, url, tokens)).get(TIMEOUT_S)
            except Exception as error:
                digest = f"failed: {type(error).__name__}: {error}"
        plain = plain or digest
        same = digest == plain and not digest.startswith("failed")
        differ += not same
        report.row("(template, wiring) sequence equal to plain", variant, "equal", [float(same)])
        report.say(f"wiring, {variant}: {digest}")
    report.bar("variants whose (template, wiring) sequence differs", differ, "==", 0)


def worker_pids() -> list[int]:
    """Workers of executors that this process started. Linux only: elsewhere none is found."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            commands[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has just ended
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])

    def ours(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == os.getpid():
                return True
        return False

    return [pid for pid, words in commands.items() if "remora.executor.worker" in words and ours(pid)]


@contextmanager
def _stopping(pids: list[int]) -> Iterator[None]:
    """Stops the processes now and then, for random moments."""
    over = threading.Event()
    rng = random.Random(5)

    def body() -> None:
        while not over.is_set():
            for doing in (signal.SIGSTOP, signal.SIGCONT):
                for pid in pids:
                    os.kill(pid, doing)
                over.wait(rng.uniform(0.005, 0.05))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def run_variant(variant: str, url: str, tokens: int) -> str:
    """What the variant's process does; returns the digest, and of how many segments it is."""
    torch.set_num_threads(1)
    if variant == EAGER_GC:
        gc.set_threshold(1)
    elif variant == NO_GC:
        gc.disable()
    rng = random.Random()

    def pause() -> None:
        if variant == SLEEPS:
            time.sleep(rng.uniform(0, 0.03))

    wiring = Wiring()
    remora.connect(url)
    session = current()
    assert session is not None
    session.tap = wiring
    for model in (models.gpt2(4, 48, 4, 256), models.llama(4, vocabulary=256)):
        model.to("remora")
        ids = models.prompt(8, vocabulary=256).to("remora")
        layer = next(module for name, module in model.named_modules() if name.endswith("2.mlp"))
        with before_forward(model, pause), before_forward(layer, pause):
            for options in ({}, {"do_sample": True, "top_k": 20}, {"num_beams": 2}):
                torch.manual_seed(3)
                model.generate(ids, max_new_tokens=tokens, **{"do_sample": False, **options}).cpu()
    remora.disconnect()
    return f"{wiring.digest[:32]} of {wiring.segments} segments"
