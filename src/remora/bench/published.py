"""The experiment `modes`: the published evaluation's arms, from weights at every call to one token id, 72 + 50 tokens.

Bytes are what bench/mode_arms.py works out from the model's shape, and framing within its margin, or the run fails.
"""

from __future__ import annotations

import itertools
import random
import statistics
from dataclasses import replace

import torch

from remora.bench import ceiling, mode_arms, models
from remora.bench.contest import BETWEEN, DOWN, UP, Setting, carried, contest, row
from remora.bench.harness import Options, Report
from remora.bench.links import Link, executors
from remora.bench.mode_arms import MODES, NAIVE, SEMANTIC, Sizes

PROMPT, TOKENS, NAIVE_TOKENS = 72, 50, 3
QUICK_TOKENS = 8
TRIALS, QUICK_TRIALS = 5, 3
GBIT = 10.0
DIRECTIONS = (UP, DOWN, BETWEEN)


def run(options: Options, report: Report) -> None:
    torch.set_num_threads(1)
    model = models.gpt2(layers=2, vocabulary=4096) if options.quick else models.gpt2()
    weights_nbytes = sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))
    sizes = Sizes.of(model.config, 4, weights_nbytes)
    tokens = QUICK_TOKENS if options.quick else TOKENS
    trials = QUICK_TRIALS if options.quick else TRIALS
    ids = models.prompt(PROMPT, vocabulary=model.config.vocab_size)
    reference = mode_arms.plain(model.to, ids, tokens)
    rate = ceiling.read_bytes_per_s()
    floor_s = ceiling.weights_nbytes(model) / rate
    report.say(f"ceiling: weights of a token read at {rate / 1e9:.3g} GB/s: {floor_s * 1e3:.3g} ms a token")
    with executors(2, Link(GBIT * 1e9 / 8), "--no-same-host") as pool:
        report.say(pool.about)
        setting = Setting("GPT-2" + (", 2 layers" if options.quick else ""), "token", {"prompt": PROMPT})
        entries = [mode_arms.local_entry(model.to, ids, tokens, reference)]
        for mode in MODES:
            made = NAIVE_TOKENS if mode is NAIVE else tokens
            expected = [reference[0][:, :made]]
            entries.append(mode_arms.entry(mode, model.to, sizes, ids, made, expected))
        floored = [replace(entry, floor_s=floor_s * entry.units) for entry in entries]
        results = contest(report, setting, floored, pool, trials, random.Random(options.seed))
    for name, result in results.items():
        row(report, setting, "", result)
        for direction in DIRECTIONS if result.entry.arm.executors else ():
            each = [carried(trial.nbytes)[direction] / result.entry.units for trial in result.trials]
            report.row(f"{setting.workload}, {direction}", name, "B/token", each)
    for mode in MODES:
        seconds = results[mode.name].seconds, results["local"].seconds
        report.ratio(f"{setting.workload}: time, this / local", mode.name, *seconds)
    judge(report, {name: statistics.median(result.seconds) for name, result in results.items()})


def judge(report: Report, seconds: dict[str, float]) -> None:
    """The less travels, the less time: what the evaluation said."""
    order = [seconds[mode.name] for mode in MODES]
    out_of_order = sum(b > a for a, b in itertools.pairwise(order))
    report.bar("modes that take longer than the one that sends more", out_of_order, "==", 0)
    report.bar("semantic / naive, time of a token", seconds[SEMANTIC.name] / seconds[NAIVE.name], "<", 1.0)
