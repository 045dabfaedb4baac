"""accelerate as it is: `Accelerator()`, `device_map`, offloading, against the same on the local CPU."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import get_max_memory
from transformers import AutoModelForCausalLM

from remora.bench import models

IDS = models.prompt(7, batch=2, vocabulary=256)


@pytest.fixture(autouse=True)
def _alone():
    """accelerate's global state is made anew."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def _train(cpu: bool) -> tuple[torch.device, list[float], list[torch.Tensor]]:
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=cpu, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = torch.utils.data.TensorDataset(torch.randn(24, 8), torch.randint(0, 2, (24,)))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    losses = []
    for _ in range(2):
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                losses.append(accelerator.gather(loss).item())
    weights = [p.detach().cpu() for p in accelerator.unwrap_model(model).parameters()]
    return accelerator.device, losses, weights


def test_an_accelerator_trains_on_the_executor_as_on_the_cpu(connected: ModuleType) -> None:
    device, losses, weights = _train(cpu=False)
    _, expected_losses, expected = _train(cpu=True)
    assert device == torch.device("remora", 0)
    assert losses == expected_losses
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Llama in several shards, and the tokens that it should write."""
    path = tmp_path_factory.mktemp("llama")
    model = models.llama(4, vocabulary=256)
    model.save_pretrained(path, max_shard_size="100KB")
    return path, model.generate(IDS, max_new_tokens=6, do_sample=False)


SPLIT = {"model.layers.1": "cpu", "model.layers.3": "cpu"}
PARTS = (
    "model.embed_tokens",
    "model.rotary_emb",
    "model.norm",
    "lm_head",
    "model.layers.0",
    "model.layers.2",
)
MAPS: dict[str, dict[str, Any]] = {
    "remora": {"device_map": "remora"},
    "auto": {"device_map": "auto"},
    "balanced": {"device_map": "balanced"},
    "sequential": {"device_map": "sequential"},
    "a dict": {"device_map": {"": "remora:0"}},
    "auto, little memory": {"device_map": "auto", "max_memory": {"remora": "400KB", "cpu": "1GB"}},
    "offloaded layers": {"device_map": {**dict.fromkeys(PARTS, "remora"), **SPLIT}},
}


@pytest.mark.parametrize("name", MAPS)
def test_device_map_puts_a_model_on_the_executor(connected: ModuleType, checkpoint: Any, name: str) -> None:
    path, expected = checkpoint
    options = {key: dict(item) if isinstance(item, dict) else item for key, item in MAPS[name].items()}
    model = AutoModelForCausalLM.from_pretrained(path, **options)
    devices = {parameter.device.type for parameter in model.parameters()}
    offloads = name in ("auto, little memory", "offloaded layers")
    assert devices == (
        {"remora", "meta"} if offloads else {"remora"}
    )  # accelerate brings those on meta when needed
    tokens = model.generate(IDS.to("remora"), max_new_tokens=6, do_sample=False)
    assert torch.equal(tokens.cpu(), expected)


def test_memory_is_counted(connected: ModuleType) -> None:
    found = get_max_memory()
    assert 0 < found["remora:0"] <= 2 << 30  # what the executor of the tests has
    assert list(found) == ["remora:0", "cpu"]
    assert get_max_memory({"remora": "1GB", "cpu": "2GB"}) == {"remora": 10**9, "cpu": 2 * 10**9}


def test_nothing_is_different_without_a_session() -> None:
    """Nor in a program that only imports remora. Which comes first: test_trainer.py has the other order."""
    program = """
from accelerate import Accelerator
from accelerate.utils import get_max_memory
import remora
assert Accelerator().device.type == "cpu", Accelerator().device
assert "remora:0" not in get_max_memory()
assert dict((name, ok) for name, ok, _ in remora.probes())["accelerate-knows-remora"]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
