"""Decode on a GPU: local eager, HF's static compiled cache, and Remora with client and executor as two processes.

    python benchmarks/gpu/decode.py --models gpt2,llama-8b --out results.json

Every arm of a model runs in this process's one session, one after another, on the same GPU, with random bf16
weights, batch 1 and the same prompt. `--device cpu --tiny` checks the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
import transformers

import remora
from remora.pool.embedded import EmbeddedExecutor
from remora.session.connect import current

PROMPT = 512
NEW_TOKENS = 64
FORCED = 24  # teacher-forced steps
TRIALS = 5
# hidden size, inner size, layers, heads
SHAPES = {
    "llama-8b": (4096, 14336, 32, 32),
    "llama-1b": (2048, 8192, 16, 32),
    "tiny": (64, 128, 2, 8),
}


def log(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def make(name: str, device: str, tiny: bool) -> Any:
    """Random bf16 weights, made on the device."""
    if name == "gpt2":
        config: Any = transformers.GPT2Config(bos_token_id=0, eos_token_id=50256)
        if tiny:
            config = transformers.GPT2Config(n_layer=2, n_embd=48, bos_token_id=0, eos_token_id=50256)
        kind: Any = transformers.GPT2LMHeadModel
    else:
        hidden, inner, layers, heads = SHAPES["tiny" if tiny else name]
        config = transformers.LlamaConfig(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            vocab_size=128256,
            max_position_embeddings=8192,
            bos_token_id=0,
            eos_token_id=128255,
        )
        kind = transformers.LlamaForCausalLM
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = kind(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.eval()
    model.generation_config.pad_token_id = 0
    return model


def sync(device: str) -> None:
    if device == "remora":
        torch.remora.synchronize()  # type: ignore[attr-defined]
    elif device.startswith("cuda"):
        torch.cuda.synchronize()


def timed_generate(model: Any, ids: torch.Tensor, device: str, **kwargs: Any) -> dict[str, Any]:
    """Seconds of one generate, split at the first token, and the tokens."""
    stamps: list[float] = []

    class Stamps(transformers.StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            stamps.append(time.perf_counter())
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    sync(device)
    started = time.perf_counter()
    tokens = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        stopping_criteria=transformers.StoppingCriteriaList([Stamps()]),
        **kwargs,
    ).cpu()
    ended = time.perf_counter()
    # the first stamp is only the first token's time where the program waits for it; steps are measured from it
    steady = (ended - stamps[8]) / (len(stamps) - 9)
    return {"ttft_ms": (stamps[0] - started) * 1e3, "ms_per_token": steady * 1e3, "tokens": tokens}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    ms = [run["ms_per_token"] for run in runs]
    return {
        "ms_per_token": round(statistics.median(ms), 3),
        "min": round(min(ms), 3),
        "max": round(max(ms), 3),
        "ttft_ms": round(statistics.median(run["ttft_ms"] for run in runs), 2),
        "trials": len(ms),
    }


@torch.no_grad()
def forced_logits(model: Any, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Last-position logits [steps, vocabulary] on the CPU, feeding the given tokens."""
    out = model(input_ids=ids, use_cache=True)
    rows = [out.logits[0, -1].float().cpu()]
    for step in range(FORCED):
        out = model(input_ids=tokens[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)
        rows.append(out.logits[0, -1].float().cpu())
    return torch.stack(rows)


def spread(first: torch.Tensor, second: torch.Tensor) -> dict[str, Any]:
    """How far two teacher-forced runs are apart."""
    difference = (first - second).abs().amax(dim=1)
    return {
        "first_step_equal": bool(torch.equal(first[0], second[0])),
        "equal_steps": int((difference == 0).sum()),
        "steps": first.shape[0],
        "max_abs": round(float(difference.max()), 5),
        "median_abs": round(float(difference.median()), 5),
    }


def measure(name: str, device: str, tiny: bool, compiled: bool) -> dict[str, Any]:
    log(f"{name}: making the model")
    model = make(name, device, tiny)
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    result: dict[str, Any] = {"model": name, "weights_bytes": nbytes}
    ids = torch.randint(1, 50000, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    local_ids = ids.to(device)
    timed_generate(model, local_ids, device)
    local = [timed_generate(model, local_ids, device) for _ in range(TRIALS)]
    expected = local[0]["tokens"]
    result["local_eager"] = summary(local)
    result["local_eager"]["same_tokens_as_itself"] = sum(
        torch.equal(run["tokens"], expected) for run in local
    )
    log(f"{name}: local eager {result['local_eager']}")
    forced = expected[:, PROMPT:]
    first = forced_logits(model, local_ids, forced.to(device))
    result["eager_spread"] = spread(first, forced_logits(model, local_ids, forced.to(device)))
    log(f"{name}: eager against itself {result['eager_spread']}")

    result["remora"] = remote(name, model.to("cpu"), ids, first, forced, expected)
    del model
    gc.collect()
    if compiled:
        result["local_static_compiled"] = static_compiled(make(name, device, tiny), local_ids, device)
        log(f"{name}: static compiled {result['local_static_compiled']}")
    return result


def static_compiled(model: Any, ids: torch.Tensor, device: str) -> dict[str, Any]:
    """Hugging Face's own fast path, which compiles the decode step."""
    started = time.perf_counter()
    for _ in range(2):
        timed_generate(model, ids, device, cache_implementation="static")
    warm_up_s = time.perf_counter() - started
    runs = [timed_generate(model, ids, device, cache_implementation="static") for _ in range(TRIALS)]
    return {**summary(runs), "warm_up_s": round(warm_up_s, 1)}


def remote(
    name: str,
    model: Any,
    ids: torch.Tensor,
    local_logits: torch.Tensor,
    forced: torch.Tensor,
    expected: torch.Tensor,
) -> dict[str, Any]:
    """The same weights on the executor."""
    before = remora.stats()
    started = time.perf_counter()
    model.to("remora")
    sync("remora")
    upload_s = time.perf_counter() - started
    sent = (remora.stats() - before).weights_bytes
    log(f"{name}: {sent / 1e9:.2f} GB uploaded in {upload_s:.1f} s")
    remote_ids = ids.to("remora")
    cold = timed_generate(model, remote_ids, "remora")
    timed_generate(model, remote_ids, "remora")
    before, cpu, worked = remora.stats(), time.process_time(), executor_s()
    runs = [timed_generate(model, remote_ids, "remora") for _ in range(TRIALS)]
    cpu_ms = (time.process_time() - cpu) / (TRIALS * NEW_TOKENS) * 1e3
    spent, worked = remora.stats() - before, executor_s() - worked
    logits = forced_logits(model, remote_ids, forced.to("remora"))
    result = {
        **summary(runs),
        "cold_first_generate_s": round(cold["ttft_ms"] / 1e3 + cold["ms_per_token"] * NEW_TOKENS / 1e3, 2),
        "client_cpu_ms_per_token": round(cpu_ms, 2),
        "executor_host_ms_per_token": round(worked / (TRIALS * NEW_TOKENS) * 1e3, 2),
        "bytes_per_token": round((spent.bytes_sent + spent.bytes_received) / (TRIALS * NEW_TOKENS)),
        "round_trips_per_token": round(spent.round_trips / (TRIALS * NEW_TOKENS), 3),
        "upload_bytes_per_s": round(sent / upload_s),
        "same_tokens_as_local": int((runs[0]["tokens"] == expected).sum() - PROMPT),
        "against_eager": spread(local_logits, logits),
    }
    log(f"{name}: remora {result}")
    return result


def executor_s() -> float:
    """Seconds that the executor has spent running programs, on its host's side."""
    time.sleep(0.3)  # the worker reports now and then
    session = current()
    assert session is not None
    return sum(counters["device_s"] for counters in session.transport.status(5.0).principals.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="gpt2,llama-8b")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--no-compiled", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    executor = EmbeddedExecutor("--device", args.device)
    report: dict[str, Any] = {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "remora": remora.__version__,
        },
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "prompt": PROMPT,
        "new_tokens": NEW_TOKENS,
        "dtype": "bfloat16",
        "models": [],
    }
    try:
        remora.connect(executor.start())
        for name in args.models.split(","):
            report["models"].append(measure(name, args.device, args.tiny, not args.no_compiled))
            if args.out:
                args.out.write_text(json.dumps(report, indent=1) + "\n")
    finally:
        remora.disconnect()
        executor.stop()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
