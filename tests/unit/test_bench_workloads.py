"""The suite: every quick workload runs, repeats itself bit for bit, and is what it says."""

from __future__ import annotations

import pytest
import torch

from remora.bench import workloads
from remora.bench.workloads import decoders, networks


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "name", [name for name in workloads.SUITE if name not in ("gpt2-decode", "larger-than-one")]
)
def test_two_runs_from_one_seed_are_equal(name: str) -> None:
    made = [workloads.SUITE[name].make(True)("cpu") for _ in range(2)]
    state = torch.get_rng_state()
    for progress in (0.0, 1.0):
        first, second = [], []
        for running, outputs in zip(made, (first, second), strict=True):
            if running.prepare is not None:
                running.prepare(progress)
            outputs.extend(running.step())
        assert first
        if workloads.SUITE[name].unit == "token" and name != "t5-generate":
            assert len(first) == workloads.SUITE[name].count(quick=True)
        assert all(tensor.device.type == "cpu" for tensor in first)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert any(len(tensor.unique()) > 1 or tensor.numel() == 1 for tensor in first)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's randomness changes


def test_gpt2_decodes_from_512_to_1023(monkeypatch: pytest.MonkeyPatch) -> None:
    thin = decoders.models.gpt2
    monkeypatch.setattr(decoders.models, "gpt2", lambda: thin(layers=1, width=16, heads=2))
    running = decoders._gpt2(quick=False)("cpu")
    decoding = running.step.__self__
    lengths = []
    for trial in range(5):
        running.prepare(trial / 4)
        lengths.append(decoding.cache.get_seq_length())
        assert len(running.step()) == workloads.SUITE["gpt2-decode"].units
    assert lengths[0] == 512
    assert lengths == sorted(lengths)
    assert decoding.cache.get_seq_length() == 1023


def test_the_large_one_is_larger_than_two_executors_and_fits_three() -> None:
    with torch.device("meta"):
        nbytes = sum(parameter.nbytes for parameter in decoders._larger_model().parameters())
    assert nbytes == decoders.LARGER_NBYTES
    workload = workloads.SUITE["larger-than-one"]
    assert nbytes / workload.memory_nbytes == pytest.approx(2.3, abs=0.01)
    assert workload.executors == 3


def test_the_seed_is_that_of_the_earlier_work() -> None:
    model = networks.Seed()
    cache, token = torch.randn(1, 128, 768), torch.randn(1, 1, 768)
    assert cache.nbytes == 0.375 * 2**20
    assert token.nbytes == 3 << 10
    weights = torch.softmax(torch.einsum("biw,btw->bit", token, cache), -1)  # unscaled
    expected = torch.einsum("bit,btw->biw", weights, cache)
    torch.testing.assert_close(model(token, cache), model.mlp(expected))
    assert [p.shape for p in model.parameters()] == [(768, 768), (768,), (768, 768), (768,)]


def test_the_image_transformer_is_a_vit_tiny() -> None:
    model = networks.Patches(12)
    assert sum(p.numel() for p in model.parameters()) == 5_717_416  # timm's vit_tiny_patch16_224


def test_names_are_checked() -> None:
    assert [workload.name for workload in workloads.named(("vit", "seed"))] == ["seed", "vit"]
    assert len(workloads.named()) == len(workloads.SUITE) == 12
    with pytest.raises(ValueError, match="no workload vti; there is: seed, resnet"):
        workloads.named(("vti",))
