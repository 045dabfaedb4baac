"""Every workload once on one GPU, by one call: raw results in a folder, a line for each part.

    python benchmarks/gpu/run.py --out results/            [--parts modes,seed,…] [--budget-s 560]

Executors that a part needs share the one card: what goes between them is real, and their kernels wait for each other.
There is no shaped link here; rates are a user-space proxy's (`--no-same-host`, so that values take it too). Parts run
one after the other, each in a process of its own; what would begin after the budget is left out, and named. The last
line of output is JSON. `--device cpu --tiny` tries all of it where there is no GPU; its times say nothing.

- `modes`: the published evaluation's arms with GPT-J's shape, 72 + 50 tokens, bytes against arithmetic
- `seed`: the seed's workload at rates and cache sizes, outputs of the arms compared with each other
- `decode`: GPT-2, GPT-2 XL, GPT-J and Llama-8B shapes, local eager against Remora (decode.py)
- `placement`: policies over two executors, a model larger than one (placement.py)
- `peers`: values from executor to executor (peers.py)
- `checks`: the device's generators, events, memory against the same GPU used locally (runtime.py)
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
from shapes import SHAPES, make, prompt

from remora.bench import mode_arms, records, seed_arms
from remora.bench.contest import BETWEEN, DOWN, UP, Result, Setting, carried, contest, row
from remora.bench.harness import NotAsSaid, Options, Report
from remora.bench.links import Link, executors
from remora.bench.mode_arms import MODES, NAIVE, Sizes
from remora.bench.seed_arms import BLIND, KINDS, RESIDENT

PROMPT, TOKENS, NAIVE_TOKENS = 72, 50, 3
SEED_TOKENS = (128, 1024, 8192, 32768, 131072)
RATES = (0.56, 1.0, 0.0)  # Gbit/s; 0: what the machine carries
LEAST_S = 30.0  # a part that has less left does not begin
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """command: of a script here. measure: in this program, in a process of its own."""

    name: str
    script: str = ""
    options: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()
    measure: Callable[[Report, str, bool], None] | None = None


# -- measured here


def modes(report: Report, device: str, tiny: bool) -> None:
    """GPT-J's shape in half precision; a token of its cache is 458,752 bytes, a position's logits 100,800."""
    tokens = 4 if tiny else TOKENS
    shape = make("gpt-j", "meta", tiny)
    weights = sum(weight.nbytes for weight in (*shape.parameters(), *shape.buffers()))
    sizes = Sizes.of(shape.config, shape.dtype.itemsize, weights)
    if not tiny and (sizes.kv_nbytes, sizes.logits_nbytes) != (458_752, 100_800):
        raise NotAsSaid(f"this is no GPT-J: {sizes}")
    ids = prompt(PROMPT)
    with executors(2, None, "--device", device) as pool:
        setting = Setting("GPT-J shape", "token", {"prompt": PROMPT}, device)
        chosen = [mode for mode in MODES if mode is not NAIVE]
        entries = [mode_arms.entry(mode, _maker("gpt-j", tiny), sizes, ids, tokens, None) for mode in chosen]
        naive = mode_arms.entry(NAIVE, _maker("gpt-j", tiny), sizes, ids, NAIVE_TOKENS, None)
        local = mode_arms.local_entry(_maker("gpt-j", tiny), ids, tokens, None, device)
        results = contest(report, setting, [local, *entries], pool, 3, random.Random(0))
        results |= contest(report, setting, [naive], pool, 1, random.Random(0))
    for name, result in results.items():
        row(report, setting, "", result)
        for direction in (UP, DOWN, BETWEEN) if result.entry.arm.executors else ():
            each = [carried(trial.nbytes)[direction] / result.entry.units for trial in result.trials]
            report.row(f"{setting.workload}, {direction}", name, "B/token", each)
    _alike(
        report,
        [results[mode.name] for mode in chosen],
        "GPT-J shape: modes whose tokens differ from semantic's",
    )


def _maker(name: str, tiny: bool) -> mode_arms.Make:
    return lambda device: make(name, device, tiny)


def seed(report: Report, device: str, tiny: bool) -> None:
    """All arms of the seed; the client's reference is the CPU's, so arms are compared with each other."""
    for rate in RATES[:1] if tiny else RATES:
        link = Link(rate * 1e9 / 8) if rate else None
        kind = "proxy" if rate else None
        with executors(2, link, "--no-same-host", "--device", device, kind=kind) as pool:
            report.say(pool.about)
            for tokens in (32,) if tiny else SEED_TOKENS:
                if rate and tokens > 8192:
                    continue  # minutes a step
                _seed_size(report, pool, rate, tokens, device)


def _seed_size(report: Report, pool: Any, rate: float, tokens: int, device: str) -> None:
    steps = 10 if tokens <= 8192 else 2
    setting = Setting("seed", "step", {"cache_tokens": tokens, "width": seed_arms.WIDTH}, device)
    entries = [
        replace(seed_arms.entry(kind, tokens, 100 if kind is RESIDENT else steps), reference=None)
        for kind in KINDS
    ]
    results = contest(report, setting, entries, pool, 5, random.Random(0))
    where = f"{f'{rate:g} Gbit/s' if rate else 'unshaped'}, {tokens} tokens"
    for result in results.values():
        row(report, setting, where, result)
    reading = [results[kind.name] for kind in KINDS if kind.reads]
    _alike(report, reading, f"seed, {where}: arms whose tokens differ from {reading[0].entry.arm.name}'s")
    shares = [
        1 - b / a for a, b in zip(results[BLIND.name].seconds, results[RESIDENT.name].seconds, strict=True)
    ]
    report.row(f"seed, {where}: of blind's time saved", RESIDENT.name, "share", shares)


def _alike(report: Report, results: list[Result], what: str) -> None:
    """The same kernels on the same card; the last is what the others are compared with."""
    said = {trial.digests for trial in results[-1].trials}
    differ = sum({trial.digests for trial in result.trials} != said for result in results[:-1])
    report.bar(what, differ, "==", 0)


# -- all parts

DECODE = ("--trials", "3", "--tokens", "48", "--rtt", "0,50", "--budget-s", "45")
PARTS = (
    Part("modes", measure=modes),
    Part("seed", measure=seed),
    Part(
        "decode",
        "decode.py",
        ("--models", ",".join(name for name in SHAPES if name != "llama-1b"), *DECODE),
        ("--models", "gpt2", "--trials", "1", "--tokens", "8", "--rtt", "0", "--prompt", "16"),
    ),
    Part("placement", "placement.py", ("--models", "gpt2"), ("--models", "gpt2", "--larger", "gpt2")),
    Part("peers", "peers.py", ("--sizes", "4KiB,1MiB,64MiB,1GiB"), ("--sizes", "4KiB", "--trials", "2")),
    Part("checks", "runtime.py"),
)
TAKES_OUT = ("decode", "placement")
TAKES_TINY = ("decode", "placement")


def run_part(part: Part, args: argparse.Namespace, within_s: float) -> dict[str, Any]:
    """Its seconds, exit status, and last line; what it wrote lies in the folder."""
    if part.measure is not None:
        command = [sys.executable, __file__, "--inside", part.name, "--device", args.device]
        command += ["--out", str(args.out), *(["--tiny"] if args.tiny else [])]
    else:
        command = [sys.executable, str(HERE / part.script), "--device", args.device]
        command += part.tiny if args.tiny else part.options
        command += ["--tiny"] if args.tiny and part.name in TAKES_TINY else []
        command += ["--out", str(args.out / f"{part.name}.json")] if part.name in TAKES_OUT else []
    started = time.perf_counter()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=within_s)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {within_s:.0f} s", "seconds": round(within_s, 1)}
    lines = done.stdout.strip().splitlines()
    if lines and part.measure is None and part.name not in TAKES_OUT:
        (args.out / f"{part.name}.json").write_text(lines[-1] + "\n")
    return {"seconds": round(time.perf_counter() - started, 1), "status": done.returncode}


def inside(part: Part, args: argparse.Namespace) -> int:
    """One measured part, in its own process; adds its records to the folder's file."""
    assert part.measure is not None
    report = Report(f"gpu-{part.name}")
    try:
        part.measure(report, args.device, args.tiny)
    finally:
        command = f"python benchmarks/gpu/run.py --parts {part.name} --device {args.device}"
        records.write(args.out / "results.jsonl", report.as_records(command, Options(quick=args.tiny)))
    return 0 if report.ok else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {part.name: part for part in PARTS}
    parser.add_argument("--out", type=Path, required=True, help="a folder; made if it is not there")
    parser.add_argument("--parts", default=",".join(known), help="with commas")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--budget-s", default=560.0, type=float, help="of all parts together")
    parser.add_argument("--inside", choices=known, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if args.inside:
        return inside(known[args.inside], args)
    unknown = [name for name in args.parts.split(",") if name not in known]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there is: {', '.join(known)}")
    until = time.monotonic() + args.budget_s
    found: dict[str, Any] = {}
    for name in args.parts.split(","):
        left_s = until - time.monotonic()
        if left_s < LEAST_S:
            found[name] = {"error": f"left out: {left_s:.0f} s were left"}
        else:
            found[name] = run_part(known[name], args, left_s)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    print(json.dumps(found))
    return int(any(one.get("status", 1) for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
