"""What all arms run: programs that know PyTorch and a device, and nothing of who stands behind it.

Runs in every peer's environment. Remora's own models are loaded by path: importing the package there would take the
name of the device that the peer needs.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

_BENCH = Path(__file__).parents[2] / "src" / "remora" / "bench"

Result = tuple[float, list[float]]  # seconds of a trial; tokens, losses, or elements
Trial = Callable[[], Result]
Device = Any  # whatever `Module.to` takes


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", _BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models, networks = _load("models"), _load("networks")
mlp_step = networks.mlp_step


def gpt2() -> tuple[Any, torch.Tensor]:
    """The 124M model and a prompt."""
    return models.gpt2(spread=models.VARIED), models.prompt(16, vocabulary=50257)


def thin() -> tuple[Any, torch.Tensor]:
    """12 layers of almost no compute, and a prompt."""
    model = models.gpt2(layers=12, width=48, heads=4, vocabulary=256, spread=models.VARIED)
    return model, models.prompt(16, vocabulary=256)


def generating(make: Callable[[], tuple[Any, torch.Tensor]], device: Device, tokens: int) -> Trial:
    model, ids = make()
    model, ids = model.to(device), ids.to(device)

    def trial() -> Result:
        started = time.perf_counter()
        with torch.no_grad():
            found = model.generate(ids, max_new_tokens=tokens, do_sample=False).cpu()
        return time.perf_counter() - started, found[0].tolist()

    return trial


def gpt_step(device: Device) -> Callable[[], torch.Tensor]:
    """A step of a small GPT, whose output weights are its embedding, with Adam and fresh ids."""
    torch.manual_seed(0)
    model = networks.TinyGpt().to(device)
    ids = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> torch.Tensor:
        text = torch.randint(0, networks.VOCABULARY, (8, networks.TOKENS + 1), generator=ids).to(device)
        optimizer.zero_grad()
        logits = model(text[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def training(make: Callable[[Device], Callable[[], torch.Tensor]], device: Device, steps: int) -> Trial:
    """The losses are read once, at the end of a trial."""
    step = make(device)

    def trial() -> Result:
        started = time.perf_counter()
        losses = torch.stack([step() for _ in range(steps)]).cpu()
        return time.perf_counter() - started, losses.tolist()

    return trial


def fresh_weights() -> Callable[[], Any]:
    """GPT-2 again and again, each time with weights that nobody has seen."""
    model = models.gpt2()

    def make() -> Any:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3)
        return copy.deepcopy(model)

    return make


def uploading(device: Device) -> Trial:
    """Until every weight is there: the last element of each is read back."""
    make = fresh_weights()

    def trial() -> Result:
        model = make()
        started = time.perf_counter()
        model.to(device)
        last = torch.stack([parameter.detach().flatten()[-1] for parameter in model.parameters()]).cpu()
        return time.perf_counter() - started, last.tolist()

    return trial


def program(workload: str, device: Device, units: int) -> Trial:
    """The program by name, on this device. units: tokens or steps of a trial."""
    if workload == "GPT-2 124M generate":
        return generating(gpt2, device, units)
    if workload == "12 thin layers generate":
        return generating(thin, device, units)
    if workload == "MLP + Adam":
        return training(mlp_step, device, units)
    if workload == "tiny GPT, tied weights + Adam":
        return training(gpt_step, device, units)
    if workload == "upload of GPT-2":
        return uploading(device)
    raise ValueError(f"there is no workload {workload!r}")
