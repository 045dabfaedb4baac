"""The experiment `decode`: unmodified generate on an executor over loopback, against the local CPU.

With round trips to measure at (`--rtt`) it is bench/run_ahead.py.
"""

from __future__ import annotations

import gc
import os
import random
from concurrent.futures import ThreadPoolExecutor

from remora.bench import importing
from remora.bench.harness import Options, Report
from remora.pool.embedded import EmbeddedExecutor


def run(options: Options, report: Report) -> None:
    """One thread in the client, one in the executor; the arms take turns in random order."""
    load = os.getloadavg()[0]
    report.say(f"order of trials from seed {options.seed}; load average {load:.2f}")
    if options.rtts:
        from remora.bench import run_ahead

        run_ahead.run(options, report)
    else:
        _loopback(options, report)
    report.row("load average", "before, after", "processes", [load, os.getloadavg()[0]])


def _loopback(options: Options, report: Report) -> None:
    importing.measure(report, options.quick)  # while nothing else is in memory
    executor = EmbeddedExecutor("--threads", "1")
    try:
        with ThreadPoolExecutor(1) as starting:
            url = starting.submit(executor.start) if options.url is None else None
            import transformers  # takes as long as the executor's start
            from transformers import GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401
        transformers.logging.set_verbosity_error()
        _measure(report, options, url.result() if url else str(options.url))
    finally:
        executor.stop()


def _measure(report: Report, options: Options, url: str) -> None:
    import torch

    import remora
    from remora.bench import models, modes, speed, uploading, wiring

    def reconnect() -> None:
        remora.disconnect()
        gc.collect()
        remora.connect(url)

    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    wiring.measure(report, options.quick, url)
    try:
        remora.connect(url)
        modes.measure(report, options.quick)
        gpt2 = models.gpt2()
        speed.measure(report, options.quick, rng, gpt2)
        uploading.measure(report, options.quick, rng, gpt2, reconnect)
    finally:
        remora.disconnect()
