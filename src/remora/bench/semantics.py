"""The experiment `semantics`: what annotation says of real programs, against what the programs themselves know.

Precision and recall per label, over rows and slots of every template; time to annotate a 32-layer Llama.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from remora.bench.harness import Options, Report
from remora.errors import UsageError
from remora.ir.annotated import Graph, Residency
from remora.pool.embedded import EmbeddedExecutor

if TYPE_CHECKING:
    from remora.bench.semantics_cases import Case
    from remora.bench.semantics_truth import Scores
    from remora.bench.watch import Plan

ANNOTATION_S = 0.1  # of all rows of a decode step of 32 layers
PRECISION, RECALL = 0.95, 0.95  # of each label, over all programs
# A buffer of integers, or a table of relative positions, is uploaded and read as an input is. Taking it for one costs
# nothing: both are bound to an executor at first use and copied where they are read.
INPUT_PRECISION = 0.8
LAYERS = 32
TRIALS = 5


def run(options: Options, report: Report) -> None:
    """Correctness does not depend on the executor; one thread on each side."""
    executor = EmbeddedExecutor("--threads", "1")
    try:
        with ThreadPoolExecutor(1) as starting:
            url = options.url or starting.submit(executor.start).result()
        _measure(report, options, url)
    finally:
        executor.stop()


def _measure(report: Report, options: Options, url: str) -> None:
    import warnings

    import torch
    import transformers

    from remora.bench.semantics_cases import CASES
    from remora.bench.semantics_truth import LABELS, Score

    warnings.simplefilter("ignore")  # of tiny configurations
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    cases = [case for case in CASES if options.only in (None, case.name)]
    cases = [case for case in cases if not (options.quick and case.group == "others")]
    if not cases:
        raise UsageError(f"no program {options.only!r}; there is: {', '.join(case.name for case in CASES)}")
    if options.write is not None:
        from remora.bench.semantics_golden import write

        for path in write(options.write, url):
            report.say(f"wrote {path}")
        return
    total: Scores = {}
    said: dict[str, list[float]] = {}
    for case in cases:
        scores, wrong, plans = check(case, url)
        parts = ", ".join(
            f"{label} {score.precision:.2f}/{score.recall:.2f}"
            for label in LABELS
            if (score := scores.get(label)) and (score.wrong or score.missed)
        )
        report.say(f"{case.name}: {len(plans)} templates; precision/recall below 1: {parts or 'none'}")
        for text in wrong[: 40 if options.only else 0]:
            report.say(f"    {text}")
        for label, score in scores.items():
            sum_ = total.setdefault(label, Score())
            sum_.right, sum_.wrong = sum_.right + score.right, sum_.wrong + score.wrong
            sum_.missed += score.missed
            said.setdefault(f"precision {label}", []).append(score.precision)
            report.row(f"precision {label}", case.name, f"of {score.right + score.wrong}", [score.precision])
            report.row(f"recall {label}", case.name, f"of {score.there}", [score.recall])
    for label in LABELS:
        if (score := total.get(label)) is not None and not options.only:
            bar = INPUT_PRECISION if label == Residency.INPUT else PRECISION
            report.bar(f"precision of {label}, of {score.right + score.wrong}", score.precision, ">=", bar)
            report.bar(f"recall of {label}, of {score.there}", score.recall, ">=", RECALL)
    if not options.only:
        rows, seconds = decode_32_layers(url)
        report.row("annotation", f"Llama, 32 layers, decode, {rows} rows", "s", seconds)
        report.bar("annotation of a 32-layer decode step, s", statistics.median(seconds), "<=", ANNOTATION_S)


def check(case: Case, url: str) -> tuple[Scores, list[str], list[Plan]]:
    """Runs one program in a session of its own. Its scores, what is wrong by row, its plans."""
    import gc

    import remora
    from remora.bench.semantics_truth import Truth, scored
    from remora.bench.watch import Watch
    from remora.session import connect

    remora.connect(url)
    try:
        session = connect.current()
        assert session is not None
        watch = Watch(strip_paths=case.strip_paths)
        truth = Truth(watch, session.recorder)
        watch.attach(session)
        case.run(truth)
        plans = list(watch.plans.values())
        wrong: list[str] = []
        return scored(truth, plans, wrong.append), wrong, plans
    finally:
        remora.disconnect()
        gc.collect()


def decode_32_layers(url: str) -> tuple[int, list[float]]:
    """Rows of one decode step, and the seconds to annotate all its segments, each as if its template were new."""
    import remora
    from remora.bench import models
    from remora.bench.generation import before_forward
    from remora.bench.watch import Watch
    from remora.semantics.annotate import annotate
    from remora.session import connect

    graphs: list[Graph] = []
    remora.connect(url)
    try:
        watch = Watch(on_graph=graphs.append)
        watch.attach(connect.current())
        model = models.llama(LAYERS).to("remora")
        with before_forward(model, graphs.clear):  # the last step remains
            model.generate(models.prompt(8).to("remora"), max_new_tokens=4, do_sample=False).cpu()
        seconds = []
        for _ in range(TRIALS):
            memory = watch.memory
            started = time.perf_counter()
            for graph in graphs:
                _, memory = annotate(graph, memory)
            seconds.append(time.perf_counter() - started)
        return sum(len(graph.rows) for graph in graphs), seconds
    finally:
        remora.disconnect()
