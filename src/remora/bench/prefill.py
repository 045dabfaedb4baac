"""The experiment `prefill`: a batch of prompts over two executors against one, until the first tokens are here and the
KV cache is where decoding will happen."""

from __future__ import annotations

from typing import Any

import torch

from remora.bench import models
from remora.bench.harness import Options, Report
from remora.bench.splitting import Inputs, Outputs, Subject, measure
from remora.bench.threads import one_thread

BATCH, TOKENS, LAYERS = 8, 128, 6
VOCABULARY = 50257


@one_thread()
def run(options: Options, report: Report) -> None:
    """One thread in each process."""
    measure(report, options, Subject(f"GPT-2 of {LAYERS} layers, {BATCH} x {TOKENS}", _make, _step, 2e-4))


def _make() -> tuple[Any, Inputs]:
    torch.manual_seed(0)
    model = models.gpt2(layers=LAYERS, spread=0.2).eval()
    return model, (torch.randint(1, VOCABULARY - 1, (BATCH, TOKENS)),)


def _step(model: Any, inputs: Inputs) -> Outputs:
    out = model(*inputs, use_cache=True, logits_to_keep=1)
    last = out.logits[:, -1]
    return last.argmax(-1).cpu(), last.amax(-1, keepdim=True).cpu()
