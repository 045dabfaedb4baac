"""Hugging Face generate, before and after its calls are captured as a whole."""

from __future__ import annotations

import pytest
import torch
import transformers  # noqa: F401  # its warnings come before the tests
from transformers.generation.streamers import BaseStreamer

import remora
from remora.bench import models

NEW = 16
PROMPT = models.prompt(9, batch=1, vocabulary=128)
BATCH = models.prompt(9, batch=3, vocabulary=128, seed=5)
PADDING = torch.ones_like(BATCH)
PADDING[0, :4] = 0

MODES = {
    "greedy": (PROMPT, {}),
    "sampled": (PROMPT, {"do_sample": True, "top_k": 20, "eos_token_id": None}),
    "beams": (PROMPT, {"num_beams": 3}),
    "static cache": (PROMPT, {"cache_implementation": "static", "disable_compile": True}),
    "left padded": (BATCH, {"attention_mask": PADDING}),
}
LAZY = {"left padded"}  # its mask is made of rows that the trace wires otherwise
MAKE = {
    "gpt2": lambda: models.gpt2(layers=3, width=32, heads=4, vocabulary=128),
    "llama": lambda: models.llama(layers=3, width=32, heads=4, kv_heads=2, inner=64, vocabulary=128),
}


class Collect(BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        pass


def generate(model, ids, options, device, **more):
    torch.manual_seed(11)
    options = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in options.items()}
    return model.generate(
        ids.to(device), **{"max_new_tokens": NEW, "do_sample": False, **options, **more}
    ).cpu()


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", MAKE)
def test_every_mode_gives_the_tokens_of_the_local_cpu(kind, mode):
    local, there = MAKE[kind](), MAKE[kind]().to("remora")
    ids, options = MODES[mode]
    expected = generate(local, ids, options, "cpu")
    assert torch.equal(generate(there, ids, options, "remora"), expected)
    for _ in range(2):  # op by op, and as a whole
        assert remora.wait_warm(300)
        assert torch.equal(generate(there, ids, options, "remora"), expected)
    guarded = remora.stats().capture_route == "guarded"
    assert guarded == (mode not in LAZY), there._compiled_call_impl.reasons
    longer = generate(there, ids, options, "remora", max_new_tokens=2 * NEW)
    assert torch.equal(longer, generate(local, ids, options, "cpu", max_new_tokens=2 * NEW))


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("connected")
def test_a_streamer_hears_the_same():
    local, there = MAKE["gpt2"](), MAKE["gpt2"]().to("remora")
    heard = []
    for model, device in ((local, "cpu"), (there, "remora"), (there, "remora")):
        streamer = Collect()
        generate(model, PROMPT, {}, device, streamer=streamer, max_new_tokens=24)  # enough to be traced
        heard.append(streamer.tokens)
        remora.wait_warm(300)
    assert heard[0] == heard[1] == heard[2]
    assert remora.stats().capture_route == "guarded"
