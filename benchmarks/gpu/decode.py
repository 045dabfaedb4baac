"""Decode on a GPU: local eager and Remora, client and executor as two processes, behind round trips that a proxy makes.

    python benchmarks/gpu/decode.py --models gpt2,llama-8b --rtt 0,50 --out results.json

Random bf16 weights, made on the device; batch 1; greedy `generate` of Hugging Face, unmodified. In this order: what
bounds it (weights over memory's rate); local eager, and how far it is from itself when fed the same tokens; for each
round trip a session: upload, first call, warm-up, trials, the same tokens fed; with `--tiers exact,inexact` also
sessions with `exact=False`; then first tokens of new processes; with `--compiled` Hugging Face's own static cache,
which compiles for a minute. A part that would not end within `--budget-s` is left out, and named. `--device cpu --tiny`
tries all of it where there is no GPU, without bars on time.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
import transformers
from shapes import SHAPES, make, prompt, sharing

import remora
from remora.bench import ceiling
from remora.bench.harness import Report, check_physics, versions
from remora.bench.links import Link, proxied
from remora.bench.ways import Numbers, Stamps, connect, counters, measured, spent
from remora.cli.bench import round_trips
from remora.pool.embedded import EmbeddedExecutor
from remora.session.connect import current

FORCED = 24  # teacher-forced steps
FORCED_RUNS, FAR_RUNS = 10, 2  # of them, eager's and Remora's: the distances between eager's are its own
TIERS = {"exact": "remora", "inexact": "remora_inexact"}  # and what a result calls them
WARM_UPS, WARM_S = 2, 60.0
FIRSTS_WITHIN_S = 120.0
COPIED_NBYTES = 1 << 30
FAR_BAR, FIRST_BAR_MS, MEMORY_BAR = 0.95, 30.0, 1.05  # beside ms a token, which each shape has


@dataclass
class Bench:
    """What all parts share. urls: by round trip in ms. left_out: parts that the budget had no room for."""

    args: argparse.Namespace
    report: Report
    urls: dict[float, str]
    round_trips_ms: dict[float, float]
    started: float = field(default_factory=time.perf_counter)
    left_out: list[str] = field(default_factory=list)

    def log(self, text: str) -> None:
        self.report.say(text)

    def left_s(self) -> float:
        return self.args.budget_s - (time.perf_counter() - self.started)

    def has_time(self, part: str, needs_s: float) -> bool:
        """Whether a part that takes about so long ends within the budget of its model."""
        if needs_s <= self.left_s():
            return True
        self.left_out.append(part)
        self.log(f"left out, no time: {part}")
        return False

    @property
    def timed(self) -> bool:
        """Whether times mean anything: those of a tiny model or of a CPU do not."""
        return str(self.args.device).startswith("cuda") and not self.args.tiny


def settle(device: str) -> None:
    if device == "remora":
        torch.remora.synchronize()  # type: ignore[attr-defined]
    elif device.startswith("cuda"):
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Trial:
    """One generate. first_ms: of a call for one token alone. spent: counters of the session."""

    ms: float
    cpu_ms: float
    nbytes: float
    first_ms: float
    tokens: torch.Tensor
    spent: Numbers


def generate(model: Any, ids: torch.Tensor, tokens: int, **options: Any) -> torch.Tensor:
    """The new tokens, on the CPU."""
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, **options)
    return out[:, ids.shape[1] :].cpu()


def trial(model: Any, ids: torch.Tensor, device: str, tokens: int, **options: Any) -> Trial:
    settle(device)
    started = time.perf_counter()
    generate(model, ids, 1, **options)
    first_ms = (time.perf_counter() - started) * 1e3
    stamps = Stamps()
    settle(device)
    before = counters()
    made = generate(model, ids, tokens, logits_processor=[stamps], **options)
    settle(device)
    if made.shape[1] != tokens:
        raise RuntimeError(
            f"{made.shape[1]} of {tokens} tokens: the model ended early, so trials are not alike"
        )
    steady = measured(stamps.stamps)
    passed = spent(before, counters())
    return Trial(steady["steady_ms"], steady["steady_cpu_ms"], steady["nbytes"], first_ms, made, passed)


def summary(trials: list[Trial]) -> dict[str, Any]:
    ms = [one.ms for one in trials]
    return {
        "ms_per_token": round(statistics.median(ms), 3),
        "min": round(min(ms), 3),
        "max": round(max(ms), 3),
        "client_cpu_ms_per_token": round(statistics.median(one.cpu_ms for one in trials), 3),
        "ttft_ms": round(statistics.median(one.first_ms for one in trials), 2),
        "trials": len(ms),
    }


@torch.no_grad()
def forced_logits(model: Any, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Last-position logits [steps, vocabulary] on the CPU, feeding the given tokens."""
    out = model(input_ids=ids, use_cache=True)
    rows = [out.logits[0, -1].float().cpu()]
    for step in range(min(FORCED, tokens.shape[1])):
        out = model(input_ids=tokens[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)
        rows.append(out.logits[0, -1].float().cpu())
    return torch.stack(rows)


def apart(first: torch.Tensor, second: torch.Tensor) -> dict[str, Any]:
    """How far two teacher-forced runs are from each other."""
    difference = (first - second).abs().amax(dim=1)
    return {
        "first_step_equal": bool(torch.equal(first[0], second[0])),
        "equal_steps": int((difference == 0).sum()),
        "steps": first.shape[0],
        "max_abs": float(difference.max()),
        "median_abs": float(difference.median()),
    }


def furthest(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return max(runs, key=lambda run: (run["max_abs"], -run["equal_steps"]))


def spread(runs: Sequence[torch.Tensor], eager: Sequence[torch.Tensor]) -> dict[str, Any]:
    """How far runs are from eager's: each from those that eager made after the one of the same number, so that eager
    is compared with itself in just as many pairs. The furthest pair, and the distances of all, ascending."""
    pairs = [apart(other, run) for at, run in enumerate(runs) for other in eager[at + 1 :]]
    most = sorted(pair["max_abs"] for pair in pairs)
    firsts = all(pair["first_step_equal"] for pair in pairs)
    return {
        **furthest(pairs),
        "first_step_equal": firsts,
        "pairs": len(pairs),
        "median_of_pairs": statistics.median(most),
        "all_pairs": [round(one, 5) for one in most],
        "equal_steps_of_pairs": statistics.median(pair["equal_steps"] for pair in pairs),
    }


def copied_bytes_per_s(device: str) -> float:
    """Bytes read and written a second by a copy on the device, at best."""
    source = torch.ones(
        COPIED_NBYTES >> (0 if device.startswith("cuda") else 3), dtype=torch.uint8, device=device
    )
    target, seconds = torch.empty_like(source), []
    for _ in range(6):
        settle(device)
        started = time.perf_counter()
        target.copy_(source)
        settle(device)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)


# -- one model


def measure(bench: Bench, name: str) -> dict[str, Any]:
    args, bench.started, bench.left_out = bench.args, time.perf_counter(), []
    model = make(name, args.device, args.tiny)
    ids = prompt(args.prompt)
    rate, nbytes = copied_bytes_per_s(args.device), ceiling.weights_nbytes(model)
    floor_ms = nbytes / rate * 1e3
    bench.log(f"{name}: ceiling: {nbytes / 1e9:.2f} GB at {rate / 1e9:.0f} GB/s: {floor_ms:.3g} ms a token")
    result: dict[str, Any] = {"model": name, "weights_bytes": nbytes, "floor_ms": round(floor_ms, 3)}

    local, logits = eager(bench, model, ids)
    result["local_eager"] = local["summary"]
    result["eager_apart"] = local["apart"]
    host = sharing(model).to("cpu")
    if not args.compiled:
        del model
    gc.collect()
    for tier in args.tiers:
        result[TIERS[tier]] = {}
        for rtt in bench.urls:
            if bench.has_time(f"{tier}, RTT {rtt:g} ms", 45 * nbytes / 16e9 + 15):
                found = remote(bench, f"{name}, {tier}", host, ids, rtt, local, logits, tier == "exact")
                result[TIERS[tier]][f"{rtt:g}"] = found
                check_physics(f"{name}, {tier}, RTT {rtt:g}", nbytes, found["min"] / 1e3, rate)
    if not args.no_firsts and bench.has_time("first tokens", 45):
        result["first_token_ms"] = first_tokens(bench, name)
    if args.compiled and bench.has_time("static compiled", 90):
        result["local_static_compiled"] = static_compiled(bench, model, ids)
    result["left_out"], result["wall_s"] = bench.left_out, round(time.perf_counter() - bench.started, 1)
    if bench.timed:
        judge_times(bench, name, result)
    return result


def eager(bench: Bench, model: Any, ids: torch.Tensor) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Local PyTorch as a user has it: its times, memory, tokens, and how far it is from itself."""
    args, on_gpu = bench.args, bench.args.device.startswith("cuda")
    there = ids.to(args.device)
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trial(model, there, args.device, args.tokens)
    trials = [trial(model, there, args.device, args.tokens) for _ in range(args.trials)]
    expected = trials[0].tokens
    found = summary(trials)
    found["same_tokens_as_itself"] = sum(torch.equal(one.tokens, expected) for one in trials)
    if on_gpu:
        found["peak_bytes"], found["reserved_bytes"] = (
            torch.cuda.max_memory_allocated(),
            torch.cuda.max_memory_reserved(),
        )
    bench.log(f"local eager {found}")
    runs = [forced_logits(model, there, expected.to(args.device)) for _ in range(FORCED_RUNS)]
    own = spread(runs, runs)
    bench.log(f"eager against itself {own}")
    return {"summary": found, "apart": own, "expected": expected}, runs


def remote(
    bench: Bench,
    name: str,
    host: Any,
    ids: torch.Tensor,
    rtt: float,
    local: dict[str, Any],
    logits: list[torch.Tensor],
    exact: bool,
) -> dict[str, Any]:
    """A session of its own behind a round trip, the same weights in it."""
    args = bench.args
    connect(bench.urls[rtt], not args.no_run_ahead, exact)
    try:
        before, started = counters_of_weights(), time.perf_counter()
        model = sharing(host).to("remora")
        settle("remora")
        upload_s, sent = time.perf_counter() - started, counters_of_weights() - before
        bench.log(f"{name}, RTT {rtt:g}: weights there in {upload_s:.1f} s, {sent / 1e9:.2f} GB sent")
        there = ids.to("remora")
        cold = trial(model, there, "remora", args.tokens)
        waited = wait_warm(min(WARM_S, bench.left_s() / 3))
        for _ in range(WARM_UPS - 1):
            trial(model, there, "remora", args.tokens)
        torch.remora.reset_peak_memory_stats()  # type: ignore[attr-defined]
        worked_s = executor_s()
        trials = [trial(model, there, "remora", args.tokens) for _ in range(args.trials)]
        worked_s = executor_s() - worked_s
        tokens = local["expected"].to("remora")
        runs = FORCED_RUNS if rtt == min(bench.urls) else FAR_RUNS  # all logits cross the link
        forced = [forced_logits(model, there, tokens) for _ in range(runs)]
        found = {
            **summary(trials),
            "each_ms_per_token": [round(one.ms, 3) for one in trials],
            "cold_ms_per_token": round(cold.ms, 3),
            "cold_ttft_ms": round(cold.first_ms, 2),
            "waited_for_fast_routes_s": waited,
            "executor_host_ms_per_token": round(worked_s / args.trials / (args.tokens + 1) * 1e3, 3),
            "bytes_per_token": round(statistics.median(one.nbytes for one in trials)),
            "spent_a_call": trials[-1].spent,
            "upload_s": round(upload_s, 2),
            "uploaded_bytes": sent,
            "peak_bytes": torch.remora.max_memory_allocated(),  # type: ignore[attr-defined]
            "reserved_bytes": torch.remora.memory_reserved(),  # type: ignore[attr-defined]
            "same_tokens_as_local": int((trials[0].tokens == local["expected"]).sum()),
            "against_eager": spread(forced, logits),
            "inexact": inexact_counters(),
        }
        del model
    finally:
        remora.disconnect()
        gc.collect()
    bench.log(f"{name}, RTT {rtt:g}: {found}")
    if exact:
        judge_exact(bench, f"{name}, RTT {rtt:g} ms", found, local["apart"])
    return found


def inexact_counters() -> dict[str, float]:
    """Of the executor since it started: segments run by other kernels than PyTorch's, programs that were refused."""
    session = current()
    assert session is not None
    (counted,) = session.transport.status(5.0).principals.values()
    return {
        key: counted[key] for key in ("segments", "inexact_segments", "inexact_refused") if key in counted
    }


def counters_of_weights() -> int:
    return int(remora.stats().weights_bytes)


def wait_warm(timeout_s: float) -> float | None:
    """Seconds until the fast routes were in; None: this Remora has none to wait for."""
    wait = getattr(remora, "wait_warm", None)
    if wait is None:
        return None
    started = time.perf_counter()
    wait(timeout_s)
    return round(time.perf_counter() - started, 2)


def executor_s() -> float:
    """Seconds that the executor has spent running programs, on its host's side."""
    time.sleep(0.3)  # the worker reports now and then
    session = current()
    assert session is not None
    return sum(counted["device_s"] for counted in session.transport.status(5.0).principals.values())


def static_compiled(bench: Bench, model: Any, ids: torch.Tensor) -> dict[str, Any]:
    """Hugging Face's own fast path, which compiles the decode step."""
    args, there, started = bench.args, ids.to(bench.args.device), time.perf_counter()
    run: Callable[[], Trial] = lambda: trial(  # noqa: E731
        model, there, args.device, args.tokens, cache_implementation="static"
    )
    for _ in range(2):
        run()
    warm_up_s = time.perf_counter() - started
    return {**summary([run() for _ in range(args.trials)]), "warm_up_s": round(warm_up_s, 1)}


# -- first tokens of new processes


def first_tokens(bench: Bench, name: str) -> dict[str, list[float]]:
    """Milliseconds by round trip, in a process that has no GPU of its own, as a remote client has none."""
    args = bench.args
    asked = {"name": name, "tiny": args.tiny, "tokens": args.prompt, "run_ahead": not args.no_run_ahead}
    asked["urls"] = {f"{rtt:g}": url for rtt, url in bench.urls.items()}
    command = [sys.executable, str(Path(__file__).with_name("first_tokens.py")), json.dumps(asked)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=FIRSTS_WITHIN_S)
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    bench.log(f"{name}: first tokens of new processes, ms: {found}")
    return found


# -- bars


def judge_exact(bench: Bench, what: str, found: dict[str, Any], eager_apart: dict[str, Any]) -> None:
    """The exact tier: first step equal to the bit, later ones within what eager is from itself."""
    against = found["against_eager"]
    bench.report.bar(f"{what}: first step equal to eager", against["first_step_equal"], "==", 1)
    bench.report.bar(f"{what}: fed logits, most from eager", against["max_abs"], "<=", eager_apart["max_abs"])


def judge_times(bench: Bench, name: str, result: dict[str, Any]) -> None:
    """A round trip that was left out misses its bars."""
    for tier in (tier for tier, key in TIERS.items() if key in result):
        judge_tier(bench, name, tier, result)


def judge_tier(bench: Bench, name: str, tier: str, result: dict[str, Any]) -> None:
    report, found, local = bench.report, result[TIERS[tier]], result["local_eager"]
    none, bar_ms = float("nan"), SHAPES[name].bar_ms if tier == "exact" else SHAPES[name].inexact_bar_ms
    name = f"{name}, {tier}"
    for rtt in bench.urls:
        what, one = f"{name}, RTT {rtt:g} ms", found.get(f"{rtt:g}", {})
        report.bar(f"{what}: ms per token", one.get("ms_per_token", none), "<=", bar_ms)
        peak = one.get("peak_bytes", none) / local["peak_bytes"]
        report.bar(f"{what}: peak memory over eager's", peak, "<=", MEMORY_BAR)
        firsts = result.get("first_token_ms", {}).get(f"{rtt:g}", ())
        over = statistics.median(firsts) - local["ttft_ms"] - bench.round_trips_ms[rtt] if firsts else none
        report.bar(f"{what}: first token, ms over eager's and a round trip", over, "<=", FIRST_BAR_MS)
    if len(bench.urls) > 1:
        near, far = (
            found.get(f"{rtt:g}", {}).get("ms_per_token", none) for rtt in (min(bench.urls), max(bench.urls))
        )
        report.bar(f"{name}: tokens/s at the longest round trip over the shortest", near / far, ">=", FAR_BAR)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="gpt2,llama-8b", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rtt", default="0,50", type=round_trips, help="ms, with commas")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="two thin layers")
    parser.add_argument("--prompt", default=512, type=int)
    parser.add_argument("--tokens", default=64, type=int)
    parser.add_argument("--trials", default=5, type=int)
    parser.add_argument("--compiled", action="store_true", help="Hugging Face's static compiled cache, too")
    parser.add_argument("--no-run-ahead", action="store_true")
    parser.add_argument("--tiers", default="exact", type=tiers_named, help=f"of {', '.join(TIERS)}")
    parser.add_argument("--no-firsts", action="store_true", help="no first tokens of new processes")
    parser.add_argument("--budget-s", default=240.0, type=float, help="for each model")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def tiers_named(text: str) -> list[str]:
    """Raises ValueError."""
    names = text.split(",")
    if not set(names) <= set(TIERS):
        raise ValueError(text)
    return names


def main() -> int:
    args = parsed()
    transformers.logging.set_verbosity_error()
    report = Report("gpu-decode")
    executor = EmbeddedExecutor("--device", args.device)
    with ExitStack() as stack:
        stack.callback(executor.stop)
        url = executor.start()
        urls = {
            rtt: stack.enter_context(proxied(url, Link(0.0, rtt / 2e3))) if rtt else url for rtt in args.rtt
        }
        bench = Bench(args, report, urls, {rtt: ceiling.round_trip_ms(rtt) for rtt in args.rtt})
        results: dict[str, Any] = {
            "versions": versions(),
            "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
            "prompt": args.prompt,
            "new_tokens": args.tokens,
            "dtype": "bfloat16",
            "run_ahead": not args.no_run_ahead,
            "round_trips_ms": bench.round_trips_ms,
            "models": [],
        }
        for name in args.models.split(","):
            results["models"].append(measure(bench, name))
            results["bars"] = report.content()["bars"]
            if args.out:
                args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
