"""The experiment `multimodal`: models with independent branches over two executors against one: two equal towers, an
image and a text tower that meet at the end, and a model where almost all is in one branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from remora.bench import intervals
from remora.bench.harness import Options, Report
from remora.bench.splitting import CHOSEN, ONE, Arm, Inputs, Outputs, Subject, measure
from remora.bench.threads import one_thread

LATENCY_BAR = 0.65
WIDTH, LAYERS, IMAGE, PATCH = 512, 6, 224, 16
TEXT_TOKENS, VOCABULARY = 192, 1000
BY_ITSELF = Arm("two, branches", 2, "branches")


@one_thread()
def run(options: Options, report: Report) -> None:
    """One thread in each process. `--workload` chooses models."""
    for name in options.workloads or SUBJECTS:
        subject = SUBJECTS[name]
        seconds = measure(report, options, subject, [BY_ITSELF], speedup_bar=None)
        for arm in (CHOSEN, BY_ITSELF):
            ratio = intervals.of_ratio(seconds[arm.name], seconds[ONE.name])
            told = f"{subject.name}: latency, {arm.name} / one [{ratio.low:.2f}, {ratio.high:.2f}]"
            if name == "equal":
                report.bar(told, ratio.median, "<=", LATENCY_BAR)
            else:
                report.say(f"{told}: {ratio.median:.2f}")


class _Towers(nn.Module):
    """Two branches, each with an input of its own, and a head that reads both."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other
        self.head = nn.Linear(2 * WIDTH, 10)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.pooled(0, x), self.pooled(1, y)], 1))

    def pooled(self, branch: int, x: torch.Tensor) -> torch.Tensor:
        found = (self.other if branch else self.one)(x)
        return found.last_hidden_state.mean(1) if hasattr(found, "last_hidden_state") else found.mean(1)


def _vision(layers: int) -> Any:
    import transformers

    return transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=8,
            intermediate_size=4 * WIDTH,
            image_size=IMAGE,
            patch_size=PATCH,
        ),
        add_pooling_layer=False,
    )


def _equal() -> tuple[Any, Inputs]:
    torch.manual_seed(0)
    model = _Towers(_vision(LAYERS), _vision(LAYERS)).eval()
    return model, (torch.randn(1, 3, IMAGE, IMAGE), torch.randn(1, 3, IMAGE, IMAGE))


def _lopsided() -> tuple[Any, Inputs]:
    torch.manual_seed(0)
    model = _Towers(_vision(LAYERS), nn.Embedding(VOCABULARY, WIDTH)).eval()
    return model, (torch.randn(1, 3, IMAGE, IMAGE), torch.randint(0, VOCABULARY, (1, TEXT_TOKENS)))


def _clip() -> tuple[Any, Inputs]:
    import transformers

    torch.manual_seed(0)
    shape = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "intermediate_size": 4 * WIDTH,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {**shape, **ids, "vocab_size": VOCABULARY, "max_position_embeddings": TEXT_TOKENS}
    vision = {**shape, "image_size": IMAGE, "patch_size": PATCH}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=256)
    model = transformers.CLIPModel(config).eval()
    return model, (torch.randint(3, VOCABULARY, (1, TEXT_TOKENS)), torch.randn(1, 3, IMAGE, IMAGE))


def _step(model: Any, inputs: Inputs) -> Outputs:
    return model(*inputs).cpu(), torch.empty(0)


def _clip_step(model: Any, inputs: Inputs) -> Outputs:
    out = model(*inputs)
    found = torch.cat([out.logits_per_image, out.text_embeds, out.image_embeds], 1)
    return found.cpu(), torch.empty(0)


def _tower(model: Any, inputs: Inputs, at: int) -> object:
    return model.pooled(at, inputs[at])


def _clip_tower(model: Any, inputs: Inputs, at: int) -> object:
    return model.get_image_features(inputs[1]) if at else model.get_text_features(inputs[0])


SUBJECTS = {
    "equal": Subject("two equal towers", _equal, _step, half=_tower),
    "clip": Subject("CLIP", _clip, _clip_step, half=_clip_tower),
    "lopsided": Subject("a tower and an embedding", _lopsided, _step, half=_tower),
}
