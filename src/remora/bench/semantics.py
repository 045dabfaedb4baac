"""The experiment `semantics`: what annotation says of real programs, against what the programs themselves know.

Precision and recall per label, over rows and slots of every template; time to annotate a 32-layer Llama.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from remora.bench.harness import Options, Report
from remora.errors import UsageError
from remora.pool.embedded import EmbeddedExecutor

ANNOTATION_S = 0.1  # of all rows of a decode step of 32 layers
PRECISION, RECALL = 0.95, 0.95  # of each label, over all programs
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
    from remora.bench.semantics_truth import LABELS, Score, Scores

    warnings.simplefilter("ignore")  # of tiny configurations
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    cases = [case for case in CASES if options.only in (None, case.name)]
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
            report.bar(
                f"precision of {label}, of {score.right + score.wrong}", score.precision, ">=", PRECISION
            )
            report.bar(f"recall of {label}, of {score.there}", score.recall, ">=", RECALL)
    if not options.only:
        seconds = decode_32_layers(url)
        report.row("annotation", "Llama, 32 layers, decode", "s", seconds)
        report.bar("annotation of a 32-layer decode step, s", statistics.median(seconds), "<=", ANNOTATION_S)


def check(case, url):
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


def decode_32_layers(url) -> list[float]:
    """Seconds to annotate all templates of one decode step, five times."""
    import remora
    from remora.bench import models
    from remora.bench.watch import Watch
    from remora.semantics.annotate import annotate
    from remora.session import connect

    remora.connect(url)
    try:
        watch = Watch()
        watch.attach(connect.current())
        model = models.llama(32).to("remora")
        model.generate(models.prompt(8).to("remora"), max_new_tokens=3, do_sample=False).cpu()
        plans = list(watch.plans.values())
        n_decode = (
            len(plans)
            - next(
                at
                for at, plan in reversed(list(enumerate(plans)))
                if any(m.meaning.phase == "prefill" for m in plan.annotated.rows)
            )
            - 1
        )
        plans = plans[-n_decode:]
        seconds = []
        for _ in range(TRIALS):
            memory = watch.memory
            started = time.perf_counter()
            for plan in plans:
                _, memory = annotate(plan.captured, memory)
            seconds.append(time.perf_counter() - started)
        return seconds
    finally:
        remora.disconnect()
