"""The experiment `zoo`: Hugging Face architectures, their forward, generate and one training step, bit by bit.

The specimens run in a child process, one after the other; one that hangs or ends the child is named, and another
child goes on behind it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from remora.bench.harness import Options, Report
from remora.bench.zoo_check import ABSENT, EQUAL, Result, check
from remora.bench.zoo_specimens import absent, specimens
from remora.errors import UsageError
from remora.pool.embedded import EmbeddedExecutor

PARTS = ("forward", "generate", "train")
ENOUGH = 40  # architectures
TIMEOUT_S = 120.0  # for one specimen
ALWAYS = ("gpt2", "llama", "t5", "mixtral", "mamba", "bert", "vit", "clip")  # in every quick run
QUICK_EXTRA = 8  # others, by the seed


def run(options: Options, report: Report) -> None:
    """One thread in the client, one in the executor."""
    names = chosen(options)
    report.say(f"{len(names)} architectures, quick ones from seed {options.seed}")
    if missing := absent():
        report.say(f"not in this transformers: {', '.join(missing)}")
    executor = EmbeddedExecutor("--threads", "1")
    try:
        with ThreadPoolExecutor(1) as starting:
            url = options.url or starting.submit(executor.start).result()
        results = check_all(names, url, report)
    finally:
        executor.stop()
    for part in PARTS:
        for result in results:
            if (said := getattr(result, part)) != ABSENT:
                report.row(f"{part} equal to local", result.name, "equal", [float(said == EQUAL)])
    failed = [result for result in results if not result.ok]
    report.say(f"failed: {', '.join(result.name for result in failed) or 'none'}")
    report.bar("architectures that differ or fail", len(failed), "==", 0)
    if not options.quick and not options.only:
        report.bar("architectures all of whose parts are equal", len(results) - len(failed), ">=", ENOUGH)


def chosen(options: Options) -> list[str]:
    """Names to check. Raises UsageError if there is none of the asked name."""
    names = list(specimens())
    if options.only and options.only not in names:
        raise UsageError(f"the zoo has no {options.only!r}; it has: {', '.join(names)}")
    if options.only:
        return [options.only]
    return quick(options.seed, QUICK_EXTRA) if options.quick else names


def quick(seed: int, extra: int) -> list[str]:
    """The names that are always checked, and `extra` others."""
    names = list(specimens())
    always = [name for name in ALWAYS if name in names]
    return always + random.Random(seed).sample(sorted(set(names) - set(always)), extra)


def check_all(names: Sequence[str], url: str, report: Report) -> list[Result]:
    """Every specimen's result, in order."""
    results: list[Result] = []
    rest = list(names)
    # in a fork the imports are there already
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    while rest:
        here, there = context.Pipe()
        child = context.Process(target=_body, args=(there, url), daemon=True)
        child.start()
        there.close()
        try:
            while rest:
                results.append(_ask(here, rest.pop(0)))
                _say(report, results[-1])
                if results[-1].forward.startswith(_ENDED):
                    break
        finally:
            here.close()
            child.kill()
            child.join()
    return results


_ENDED = "no answer: "


def _ask(child: Connection, name: str) -> Result:
    try:
        child.send(name)
        if child.poll(TIMEOUT_S):
            answer: Result = child.recv()
            return answer
        return Result(name, f"{_ENDED}nothing in {TIMEOUT_S:.0f} s")
    except (EOFError, OSError) as error:
        return Result(name, f"{_ENDED}its process ended ({type(error).__name__})")


def _body(parent: Connection, url: str) -> None:
    """The child: checks what it is asked for, until the parent ends it."""
    import warnings

    import torch
    import transformers

    import remora

    warnings.simplefilter("ignore")  # of tiny configurations, by the hundred
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    remora.connect(url)
    try:
        while True:
            parent.send(check(specimens()[parent.recv()]))
    except EOFError:
        remora.disconnect()


def _say(report: Report, result: Result) -> None:
    wrong = [f"{part}: {said}" for part in PARTS if (said := getattr(result, part)) not in (EQUAL, ABSENT)]
    report.say(
        f"{'ok    ' if result.ok else 'FAILED'} {result.name} ({result.seconds:.1f} s) {'; '.join(wrong)}"
    )
