"""The experiment `vision`: image models over two executors against one: what the cost model chooses, and a pipeline of
stages with micro-batches by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from remora.bench import intervals
from remora.bench.harness import Options, Report
from remora.bench.splitting import ONE, SPEEDUP_BAR, Arm, Inputs, Outputs, Subject, measure
from remora.bench.threads import one_thread

BATCH = 16
SUBJECTS = ("ResNet-50", "ViT-B/16")
STAGES = Arm("two, pipeline", 2, "pipeline")


@one_thread()
def run(options: Options, report: Report) -> None:
    """One thread in each process. `--workload` chooses models."""
    for name in options.workloads or SUBJECTS:
        subject = Subject(f"{name}, batch {BATCH}", _maker(name), _step, 1e-3)
        seconds = measure(report, options, subject, [STAGES])
        ratio = intervals.of_ratio(seconds[ONE.name], seconds[STAGES.name])
        report.bar(
            f"{subject.name}: throughput in stages, two / one [{ratio.low:.2f}, {ratio.high:.2f}]",
            ratio.median,
            ">=",
            SPEEDUP_BAR,
        )


def _maker(name: str) -> Callable[[], tuple[Any, Inputs]]:
    def make() -> tuple[Any, Inputs]:
        import transformers

        torch.manual_seed(0)
        if name == "ResNet-50":
            model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
        else:
            model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))
        return model.eval(), (torch.randn(BATCH, 3, 224, 224),)

    return make


def _step(model: Any, inputs: Inputs) -> Outputs:
    logits = model(*inputs).logits
    both = torch.cat([logits, logits.argmax(-1, keepdim=True).to(logits.dtype)], 1).cpu()
    return both[:, -1], both[:, :-1]
