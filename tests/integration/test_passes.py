"""Passes over two executors: real processes, real sockets, outputs as without them."""

from __future__ import annotations

import pytest
import torch
from executor_process import executor_process
from random_programs import Program
from test_random_programs import check

import remora
from remora.bench import models
from remora.capture import recorder
from remora.plan.passes import batch_split, branches, frame
from remora.session.connect import current


@pytest.fixture(scope="module")
def executors():
    with executor_process("--memory", "2GiB") as one, executor_process("--memory", "2GiB") as two:
        yield [one.url, two.url]


@pytest.fixture
def pool(executors, monkeypatch):
    """Connects to both; whatever a pass proposes is taken, since nothing pays in models as small as these."""
    monkeypatch.setattr(frame, "DOUBT", -1000.0)
    monkeypatch.setattr(batch_split, "LEAST_S", 0.0)
    monkeypatch.setattr(branches, "LEAST_GAIN_S", 0.0)
    monkeypatch.setattr(branches, "DOUBT", 0.0)
    yield lambda passes: remora.connect(executors, passes=passes)
    remora.disconnect()


def taken() -> set[str]:
    plans = current().placement.plans._plans.values()
    return {choice.name for plan in plans for choice in plan.choices if choice.taken}


def step(model, ids, cache=None):
    with torch.no_grad():
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out


@pytest.mark.parametrize("make", [models.gpt2, models.llama])
def test_a_split_prefill_leaves_the_cache_where_decoding_goes_on(pool, make):
    def tokens(device):
        torch.manual_seed(3)
        model = make(layers=2, width=48, vocabulary=128).eval().to(device)
        ids = torch.randint(1, 128, (5, 16), generator=torch.Generator().manual_seed(4)).to(device)
        for _ in range(2):  # the second time weights are where they are needed
            token, out = step(model, ids)
            found = [token.cpu()]
        before = remora.stats().peer_bytes
        for _ in range(3):
            token, out = step(model, token, out.past_key_values)
            found.append(token.cpu())
        caches = [layer.keys.cpu() for layer in out.past_key_values.layers]
        return torch.cat(found, 1), caches, remora.stats().peer_bytes - before

    expected, caches, _ = tokens("cpu")
    pool("batch_split")
    got, gathered, moved = tokens("remora")
    assert torch.equal(got, expected)
    for cache, known in zip(gathered, caches, strict=True):
        torch.testing.assert_close(cache, known, rtol=1e-5, atol=1e-6)
    assert taken() == {"batch_split"}
    assert remora.stats().peer_bytes > 0
    assert moved == 0  # decoding crosses no link


def networks() -> dict[str, torch.nn.Module]:
    import transformers as tr

    torch.manual_seed(0)
    return {
        "resnet": tr.ResNetForImageClassification(
            tr.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        ),
        "convnext": tr.ConvNextForImageClassification(
            tr.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
        ),
        "vit": tr.ViTForImageClassification(
            tr.ViTConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                image_size=32,
                patch_size=8,
            )
        ),
        "swin": tr.SwinForImageClassification(
            tr.SwinConfig(
                image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4
            )
        ),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("passes", ["batch_split", "pipeline"])
def test_images_in_slices_and_stages(pool, passes):
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    pool(passes)
    for name, network in networks().items():
        network.eval()
        with torch.no_grad():
            expected = network(images).logits
            remote = network.to("remora")
            for _ in range(2):
                torch.testing.assert_close(
                    remote(images.to("remora")).logits.cpu(), expected, rtol=1e-5, atol=1e-6, msg=name
                )
    assert taken() == {passes}
    assert remora.stats().peer_bytes > 0


def clip() -> torch.nn.Module:
    import transformers as tr

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {**shape, **ids, "vocab_size": 64, "max_position_embeddings": 16}
    vision = {**shape, "image_size": 32, "patch_size": 8}
    return tr.CLIPModel(tr.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()


def test_the_towers_of_a_clip_run_apart_and_meet(pool, monkeypatch):
    """Nothing is cut where so little is computed; the first turn takes the weights there, the others nothing."""
    monkeypatch.setattr(recorder, "FIRST_CUT_ROWS", 512)
    monkeypatch.setattr(recorder, "MIN_CUT_ROWS", 512)
    ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    pool("branches")
    network = clip()
    with torch.no_grad():
        expected = network(ids, images)
        network.to("remora")
        moved = []
        for _ in range(4):
            before = remora.stats()
            out = network(ids.to("remora"), images.to("remora"))
            for name in ("logits_per_image", "text_embeds", "image_embeds"):
                assert torch.equal(out[name].cpu(), expected[name]), name
            moved.append((remora.stats() - before).peer_bytes)
    assert taken() == {"branches"}
    weights = sum(parameter.numel() for parameter in network.parameters()) * 4
    assert 0 < moved[-1] < weights / 10
    [told] = [one for one in remora.explain().passes if one.taken]
    assert told.name == "branches"
    assert "on executor 1" in told.what


@pytest.mark.parametrize("passes", ["all", "branches"])
def test_random_programs_in_slices_and_branches(pool, passes):
    pool(passes)
    seen = set()
    for number in range(30):
        check(Program(77_000 + number))
        seen |= taken()
    assert seen >= ({"batch_split"} if passes == "all" else {"branches"})


def test_a_pass_that_does_not_pay_changes_nothing(executors):
    """A small model, judged by what was measured: the plan is the one without the pass."""
    torch.manual_seed(3)
    model = models.gpt2(layers=1, width=48, vocabulary=128).eval()
    ids = torch.randint(1, 128, (4, 8))
    expected = step(model, ids)[0]
    remora.connect(executors, passes="all")
    try:
        model.to("remora")
        assert torch.equal(step(model, ids.to("remora"))[0].cpu(), expected)
        assert taken() == set()
        assert remora.stats().peer_bytes == 0
    finally:
        remora.disconnect()
