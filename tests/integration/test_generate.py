"""Unmodified Hugging Face generate on an executor, compared with the same model on the local CPU."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from generate_modes import modes
from transformers.generation.streamers import BaseStreamer

import remora
from remora.bench import models

NEW = 12
PROMPT = models.prompt(9, batch=1, vocabulary=128)
BATCH = models.prompt(9, batch=3, vocabulary=128, seed=5)
PADDING = torch.ones_like(BATCH)
PADDING[0, :4] = 0
PADDING[2, :1] = 0

MODES = modes(PROMPT, BATCH, PADDING)


@pytest.fixture(scope="module", autouse=True)
def session(executor):
    remora.connect(executor.url)
    yield
    remora.disconnect()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request):
    """A model here and the same one there."""
    if request.param == "gpt2":
        make = lambda: models.gpt2(layers=3, width=32, heads=4, vocabulary=128)  # noqa: E731
    else:
        make = lambda: models.llama(layers=3, width=32, heads=4, kv_heads=2, inner=64, vocabulary=128)  # noqa: E731
    return make(), make().to("remora")


def generate(model, ids, options, device):
    torch.manual_seed(11)
    options = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }
    return model.generate(ids.to(device), max_new_tokens=NEW, **{"do_sample": False, **options})


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_tokens_of_the_local_cpu(pair, mode):
    local, remote = pair
    ids, options = MODES[mode]
    expected = generate(local, ids, options, "cpu")
    for _ in range(2):  # captured, then repeated
        assert torch.equal(generate(remote, ids, options, "remora").cpu(), expected)


@pytest.mark.parametrize("mode", ["greedy", "left padded beams", "static cache"])
def test_inference_mode_changes_nothing(pair, mode):
    local, remote = pair
    ids, options = MODES[mode]
    with torch.inference_mode():
        got = generate(remote, ids, options, "remora").cpu()
    assert torch.equal(got, generate(local, ids, options, "cpu"))


class Collect(BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_streamer_sees_every_token(pair, in_thread):
    local, remote = pair
    here, there = Collect(), Collect()
    generate(local, PROMPT, {"streamer": here}, "cpu")
    if in_thread:
        thread = threading.Thread(target=generate, args=(remote, PROMPT, {"streamer": there}, "remora"))
        thread.start()
        thread.join(30)
    else:
        generate(remote, PROMPT, {"streamer": there}, "remora")
    assert there.tokens == here.tokens
    assert there.tokens[-1] == "end"


def test_generate_blocks_once_a_token_and_sends_little(pair):
    _, remote = pair
    ids = PROMPT.to("remora")
    generate(remote, ids, {}, "remora")
    before = remora.stats()
    tokens = generate(remote, ids, {}, "remora").cpu()
    spent = remora.stats() - before
    made = tokens.shape[1] - ids.shape[1]
    assert spent.round_trips <= made + 2  # one before prefill, one to read the result
    assert spent.bytes_sent + spent.bytes_received < 1000 * made
    assert spent.weights_bytes == 0


def test_an_encoder_of_sentences_is_bit_equal():
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    ids = models.prompt(7, batch=4, vocabulary=100)
    mask = torch.ones_like(ids)
    mask[1, 3:] = mask[3, 5:] = 0

    @torch.no_grad()
    def embed(ids, mask):
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        return torch.nn.functional.normalize((states * weight).sum(1) / weight.sum(1), dim=1)

    expected = embed(ids, mask)
    model.to("remora")
    assert torch.equal(embed(ids.to("remora"), mask.to("remora")).cpu(), expected)
