"""Caches that are large enough to grow in place: `generate` gives the tokens of the local CPU, with less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from generate_modes import modes

import remora
from remora.bench import models

PROMPT = models.prompt(140, batch=1, vocabulary=128)
BATCH = models.prompt(140, batch=3, vocabulary=128, seed=5)
PADDING = torch.ones_like(BATCH)
PADDING[0, :40] = 0
PADDING[2, :1] = 0
NEW = 16

MODES = modes(PROMPT, BATCH, PADDING)


@pytest.fixture(scope="module", autouse=True)
def session(executor):
    remora.connect(executor.url)
    yield
    remora.disconnect()


@pytest.fixture(scope="module", params=["gpt2", "llama", "llama, eager attention"])
def pair(request):
    """A model here and the same one there."""
    if request.param == "gpt2":
        local = models.gpt2(layers=2, width=256, heads=4, vocabulary=128)
    else:
        local = models.llama(layers=3, width=512, heads=8, kv_heads=4, inner=256, vocabulary=128)
    if "eager" in request.param:
        local.set_attn_implementation("eager")
    return local, copy.deepcopy(local).to("remora")


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
    assert torch.equal(generate(remote, ids, options, "remora").cpu(), generate(local, ids, options, "cpu"))


@torch.no_grad()
def steps(model, ids, count):
    """Logits of each step, and the cache after it."""
    made = model(ids, use_cache=True)
    cache, found = made.past_key_values, []
    for _ in range(count):
        made = model(made.logits[:, -1:].argmax(-1), past_key_values=cache, use_cache=True)
        found.append(made.logits)
    return found, cache


@pytest.fixture(scope="module")
def gpt2():
    local = models.gpt2(layers=2, width=256, heads=4, vocabulary=128)
    return local, copy.deepcopy(local).to("remora")


def test_a_cache_is_what_it_is_locally_whatever_is_done_to_it(gpt2):
    results = []
    for model, device in zip(gpt2, ("cpu", "remora"), strict=True):
        logits, cache = steps(model, PROMPT.to(device), 4)
        keys = cache.layers[0].keys
        stride, nbytes = keys.stride(), keys.untyped_storage().nbytes()
        fork = copy.deepcopy(cache)  # one goes on, the other is cropped and goes on, with other values
        token = torch.full((1, 1), 5).to(device)
        with torch.no_grad():
            ahead = model(token, past_key_values=cache).logits
            for layer in fork.layers:
                layer.keys, layer.values = layer.keys[:, :, :141], layer.values[:, :, :141]
            behind = model(token + 1, past_key_values=fork).logits
        keys[:, :, 3] = 0.5  # the former keys; the cache has others by now
        again = steps(model, PROMPT.to(device), 2)[0]
        tensors = [
            *logits,
            *again,
            ahead,
            behind,
            keys,
            keys.transpose(1, 2).flatten(2),
            cache.layers[0].keys,
            fork.layers[1].values,
        ]
        results.append(([tensor.cpu() for tensor in tensors], stride, nbytes))
    (expected, *facts), (found, *remote_facts) = results
    assert remote_facts == facts
    assert all(map(torch.equal, expected, found))


def made_nbytes(model, ids, count):
    """Bytes that a run allocates for values, and how much is held at most beside what was there before."""
    torch.remora.synchronize()
    start = torch.remora.memory_stats()
    torch.remora.reset_peak_memory_stats()
    logits, cache = steps(model, ids, count)
    cache_nbytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    stats = torch.remora.memory_stats()
    made = stats["allocated_bytes.all.allocated"] - start["allocated_bytes.all.allocated"]
    peak = torch.remora.max_memory_allocated() - start["allocated_bytes.all.current"]
    del logits, cache
    assert torch.remora.memory_allocated() == start["allocated_bytes.all.current"]
    return made, peak, cache_nbytes


def test_a_step_makes_little_memory(gpt2):
    _, model = gpt2
    ids = PROMPT.to("remora")
    made_nbytes(model, ids, 4)
    short, _, _ = made_nbytes(model, ids, 10)
    long, peak, cache_nbytes = made_nbytes(model, ids, 50)
    assert (long - short) / 40 < cache_nbytes / 4  # a copy of the caches would make all of it
    assert peak < 2 * cache_nbytes + (4 << 20)
