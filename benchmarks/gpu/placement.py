"""Several executors on GPUs: calibration, the cost model, placements, a model larger than one, cut by layers.

    python benchmarks/gpu/placement.py --models gpt2,llama-8b --out results.json

All executors may share one GPU. Weights are random bf16, made by the client's CPU once and uploaded; a decode step is
by hand, batch 1, prompt 512. `--device cpu --tiny` checks the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
import transformers
from shapes import make

import remora
from remora.pool.embedded import EmbeddedExecutor
from remora.session.connect import current

PROMPT, STEPS, TRIALS = 512, 16, 5
WARM_S = 30.0
CUT_SHARE = 2.3  # of one executor's memory that the model takes, on three


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def model_of(name: str, device: str, tiny: bool) -> Any:
    """Made where that is quick, and then the client's."""
    model = make(name, device, tiny).to("cpu")
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return model


class Decoding:
    def __init__(self, model: Any, device: str, prompt: int) -> None:
        self.model = model.to(device)
        ids = torch.arange(prompt).remainder(1000).view(1, -1).to(device)
        self.cache: Any = transformers.DynamicCache(config=model.config)
        self.first = self._feed(ids)
        self.next = self.first.argmax(-1, keepdim=True)

    @torch.no_grad()
    def _feed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids, past_key_values=self.cache, use_cache=True).logits[:, -1]

    def step(self) -> float:
        """Milliseconds of a token."""
        started = time.perf_counter()
        for _ in range(STEPS):
            self.next = self._feed(self.next).argmax(-1, keepdim=True)
            self.next.cpu()
        return (time.perf_counter() - started) * 1e3 / STEPS


def measured(
    urls: list[str], placement: str, model: Any, prompt: int, trials: int = TRIALS
) -> dict[str, Any]:
    """A session under a placement: times, bytes, predictions; its first logits."""
    started = time.perf_counter()
    remora.connect(urls, placement=placement)
    connect_s = time.perf_counter() - started
    started = time.perf_counter()
    decoding = Decoding(model, "remora", prompt)
    first = decoding.first.cpu()
    first_s = time.perf_counter() - started
    warm = []
    for _ in range(2):  # op by op, and as whole calls
        warm += [decoding.step(), decoding.step()]
        remora.wait_warm(WARM_S)
    before = remora.stats()
    times = [decoding.step() for _ in range(trials)]
    spent = remora.stats() - before
    session: Any = current()
    plans = []
    for plan in session.placement.ledger.plans:
        if plan.ran.timed:
            plans.append(
                {
                    "phases": plan.phases,
                    "rows": len(plan.graph.rows),
                    "parts": [(part.executor, len(part.rows)) for part in plan.parts][:8],
                    "planning_s": plan.ran.planning_s,
                    "model_s": plan.whole.seconds,
                    "predicted_s": statistics.median(t.predicted.seconds for t in plan.ran.timed),
                    "measured_s": statistics.median(t.measured_s for t in plan.ran.timed),
                }
            )
    pool = session.placement.planner.pool
    found = {
        "connect_s": connect_s,
        "upload_and_prefill_s": first_s,
        "warm_ms": warm,
        "ms_a_token": times,
        "peer_bytes_a_token": spent.peer_bytes / (STEPS * trials),
        "plans_warm": spent.plans,
        "plans": plans,
        "held_nbytes": list(session.placement.holdings.held_nbytes),
        "links": {f"{a}-{b}": [link.bytes_per_s, link.latency_s] for (a, b), link in pool.links.items()},
        "client_links": [[link.bytes_per_s, link.latency_s] for link in pool.client],
        "devices": [(d.name, d.call_s, d.view_s, d.run_s, d.memory_rate) for d in pool.devices],
        "explain": str(remora.explain()) if hasattr(remora, "explain") else "",
    }
    remora.disconnect()
    between = found["peer_bytes_a_token"]
    log(f"{placement} on {len(urls)}: {statistics.median(times):.2f} ms a token, {between:.0f} B between")
    return {**found, "first": first}


def compared(
    name: str, device: str, tiny: bool, urls: list[str], save: Callable[[dict[str, Any]], None]
) -> None:
    """A model under each placement; `save` gets all arms so far after each."""
    log(name)
    arms: dict[str, Any] = {}
    reference = None
    for placement, n in (("local", 1), ("semantic", 2), ("data_aware", 2), ("split", 2), ("blind", 2)):
        try:
            trials = 2 if placement in ("split", "blind") else TRIALS
            arm = measured(urls[:n], placement, model_of(name, device, tiny), prompt_of(tiny), trials)
            first = arm.pop("first")
            reference = first if reference is None else reference
            arm["first_logits_equal"] = bool(torch.equal(first, reference))
            arms[placement] = arm
        except Exception as error:
            arms[placement] = {"error": f"{type(error).__name__}: {error}"[:2000]}
            log(f"{placement}: {arms[placement]['error'][:300]}")
            remora.disconnect()
        save(arms)


def larger_than_one(name: str, device: str, tiny: bool) -> dict[str, Any]:
    """A model of CUT_SHARE executors on three."""
    log(f"{name} on executors of 1/{CUT_SHARE} of it")
    model = model_of(name, device, tiny)
    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    cap = str(int(nbytes / CUT_SHARE))
    with executors(3, "--device", device, "--memory", cap) as urls:
        try:
            arm = measured(urls, "semantic", model, prompt_of(tiny))
            arm.pop("first")
            return {"nbytes": nbytes, "cap": cap, **arm}
        except Exception as error:
            remora.disconnect()
            said = f"{type(error).__name__}: {error}"[:3000]
            log(said[:300])
            return {"error": said}


def prompt_of(tiny: bool) -> int:
    return 16 if tiny else PROMPT


@contextmanager
def executors(n: int, *options: str) -> Iterator[list[str]]:
    made = [EmbeddedExecutor(*options) for _ in range(n)]
    try:
        yield [executor.start() for executor in made]
    finally:
        for executor in made:
            executor.stop()


def main() -> int:
    asked = argparse.ArgumentParser()
    asked.add_argument("--models", default="gpt2,llama-1b")
    asked.add_argument("--larger", default="llama-1b")
    asked.add_argument("--device", default="cuda:0")
    asked.add_argument("--tiny", action="store_true")
    asked.add_argument("--out", type=Path)
    options = asked.parse_args()
    results: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
        "steps_a_trial": STEPS,
    }

    def save(name: str, found: dict[str, Any]) -> None:
        results[name] = found
        if options.out:
            options.out.write_text(json.dumps(results, indent=1, default=str))

    with executors(2, "--device", options.device) as urls:
        for name in options.models.split(","):
            compared(name, options.device, options.tiny, urls, partial(save, name))
    alone = results.get(options.larger, {}).get("local", {}).get("ms_a_token")
    save("larger", {**larger_than_one(options.larger, options.device, options.tiny), "alone": alone})
    print(json.dumps({key: value for key, value in results.items() if not isinstance(value, dict)}))
    parts = [part for part in results.values() if isinstance(part, dict)]
    arms = [arm for part in parts for arm in (part, *part.values()) if isinstance(arm, dict)]
    return int(any("error" in arm for arm in arms))


if __name__ == "__main__":
    sys.exit(main())
