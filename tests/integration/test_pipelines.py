"""`transformers.pipeline(device="remora")`, against the same on the local CPU."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models

from remora.bench.zoo_specimens import specimens

SPECIAL = {
    name: f"[{name[:-6].upper()}]"
    for name in ("pad_token", "unk_token", "mask_token", "cls_token", "sep_token")
}


def tokenizer() -> Any:
    words = [*SPECIAL.values(), *(f"w{i}" for i in range(90))]
    fast = Tokenizer(tokenizer_models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, padding_side="left", **SPECIAL)


def bert(kind: str) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, kind)(specimens()["bert"].build().config).eval()


def picture() -> Image.Image:
    noise = numpy.random.default_rng(0).random((40, 40, 3))
    return Image.fromarray((noise * 255).astype("uint8"))


WRITE = {"max_new_tokens": 5, "do_sample": False}
TEXTS = ["w1 w2 w3", "w4 w5"]
CASES: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
    "text-generation": ("text-generation", lambda: specimens()["gpt2"].build(), TEXTS, WRITE),
    "in batches": ("text-generation", lambda: specimens()["gpt2"].build(), TEXTS, {**WRITE, "batch_size": 2}),
    "fill-mask": ("fill-mask", lambda: specimens()["bert"].build(), "w1 [MASK] w3", {}),
    "features": ("feature-extraction", lambda: bert("BertModel"), TEXTS[0], {}),
    "classification": ("text-classification", lambda: bert("BertForSequenceClassification"), TEXTS, {}),
    "token classes": ("token-classification", lambda: bert("BertForTokenClassification"), TEXTS[0], {}),
    "pictures": ("image-classification", lambda: specimens()["vit"].build(), picture(), {}),
}


@pytest.mark.filterwarnings("ignore")  # of transformers, about tiny models
@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_says_what_it_says_on_the_cpu(connected: ModuleType, name: str) -> None:
    task, build, asked, options = CASES[name]
    model = build()
    if name == "pictures":
        parts = {"image_processor": transformers.ViTImageProcessor(size={"height": 32, "width": 32})}
    else:
        parts = {"tokenizer": tokenizer()}
    here = transformers.pipeline(task, model=copy.deepcopy(model), device="cpu", **parts)
    there = transformers.pipeline(task, model=model, device="remora", **parts)
    assert there.device.type == "remora"
    assert {p.device.type for p in there.model.parameters()} == {"remora"}
    assert there(asked, **options) == here(asked, **options)
