"""A training step on the executor against the same on the local CPU."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch

from remora.bench import networks

FORMS: dict[str, dict[str, Any]] = {"default": {}, "each": {"foreach": False}, "fused": {"fused": True}}
KINDS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01},
    **{
        name: {"lr": 0.01}
        for name in (
            "Adagrad",
            "RMSprop",
            "Adadelta",
            "NAdam",
            "RAdam",
            "Adamax",
            "ASGD",
            "Rprop",
            "Adafactor",
        )
    },
}
FUSED = ("SGD", "Adam", "AdamW", "Adagrad")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    f"{kind}, {form}": partial(getattr(torch.optim, kind), **options, **FORMS[form])
    for kind, options in KINDS.items()
    for form in FORMS
    if form != "fused" or kind in FUSED
}


def _train(device: str, optimizer: str) -> tuple[list[float], list[torch.Tensor]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.LayerNorm(32), torch.nn.Linear(32, 4)
    )
    inputs, labels = torch.randn(8, 16), torch.randint(0, 4, (8,))
    model.to(device)
    inputs, labels = inputs.to(device), labels.to(device)
    steps = OPTIMIZERS[optimizer](model.parameters())
    losses = []
    for _ in range(5):
        steps.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        steps.step()
        losses.append(loss.detach())
    return [loss.item() for loss in losses], [parameter.detach().cpu() for parameter in model.parameters()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_losses_and_parameters_equal_local(connected: ModuleType, optimizer: str) -> None:
    losses, parameters = _train("remora", optimizer)
    expected_losses, expected_parameters = _train("cpu", optimizer)
    assert losses == expected_losses
    for got, expected in zip(parameters, expected_parameters, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}], ids=["foreach", "fused"])
def test_ops_without_results_wait_for_nothing(connected: ModuleType, options: dict[str, bool]) -> None:
    parameters = [torch.ones(3, device="remora", requires_grad=True) for _ in range(2)]
    steps = torch.optim.Adam(parameters, **options)
    for parameter in parameters:
        parameter.grad = torch.ones(3, device="remora")
    steps.step()
    before = connected.stats()
    steps.step()
    assert (connected.stats() - before).round_trips == 0


def test_default_dtype_travels(connected: ModuleType) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        half = torch.tensor([3, 4], device="remora") / 2
        assert half.dtype == torch.float64
        assert half.tolist() == [1.5, 2.0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert (torch.tensor([3, 4], device="remora") / 2).dtype == torch.float32


def test_composites_come_apart_in_inference_mode(connected: ModuleType) -> None:
    with torch.inference_mode():
        matrix = torch.arange(12.0, device="remora").reshape(3, 4)
        product = torch.einsum("ij,kj->ik", matrix, matrix)
        assert type(product.cpu()) is torch.Tensor
        assert torch.equal(product.cpu(), matrix.cpu() @ matrix.cpu().T)


def test_moving_a_model_records_no_op_and_sends_each_tied_weight_once(connected: ModuleType) -> None:
    first, second = torch.nn.Linear(256, 256, bias=False), torch.nn.Linear(256, 256, bias=False)
    second.weight = first.weight
    before = connected.stats()
    model = torch.nn.Sequential(first, second).to("remora")
    spent = connected.stats() - before
    assert model[0].weight is model[1].weight
    assert spent.ops == 0
    assert spent.weights_bytes == 256 * 256 * 4


def test_out_is_the_result_whatever_looks_like_it(connected: ModuleType) -> None:
    with torch.inference_mode():
        x, y = torch.arange(32.0, device="remora"), torch.ones(32, device="remora")
        z = torch.zeros(32, device="remora")
        assert torch.ops.aten.add.out(x, y, out=x) is x  # remembered by metadata, which z shares
        assert torch.ops.aten.add.out(x, y, out=z) is z
        assert z.tolist() == [n + 2.0 for n in range(32)]


def _gpt_losses(device: str, steps: int) -> list[float]:
    torch.manual_seed(0)
    model = networks.TinyGpt(layers=2, width=32, heads=2).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        text = torch.randint(0, networks.VOCABULARY, (2, 17)).to(device)
        optimizer.zero_grad()
        logits = model(text[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return [loss.item() for loss in losses]


def test_a_gpt_with_tied_weights_learns_as_locally(connected: ModuleType) -> None:
    expected = _gpt_losses("cpu", 50)
    assert _gpt_losses("remora", 50) == expected
    assert expected[-1] < expected[0]


def test_lbfgs_and_muon(connected: ModuleType) -> None:
    def train(device: str, make: Callable[[Any], Any]) -> list[float]:
        torch.manual_seed(0)
        weight = torch.randn(4, 4).to(device).requires_grad_()
        goal = torch.randn(4, 4).to(device)
        optimizer, losses = make([weight]), []

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (weight - goal).pow(2).sum()
            loss.backward()
            return loss

        for _ in range(3):
            losses.append(optimizer.step(closure).item())
        return losses

    makers: list[Callable[[Any], Any]] = [partial(torch.optim.LBFGS, line_search_fn="strong_wolfe")]
    if hasattr(torch.optim, "Muon"):
        makers.append(partial(torch.optim.Muon, lr=0.1))
    for make in makers:
        assert train("remora", make) == train("cpu", make)


def test_capturable_steps_count_on_the_device(connected: ModuleType) -> None:
    parameter = torch.ones(3, device="remora", requires_grad=True)
    plain = torch.ones(3, requires_grad=True)
    steps, expected = torch.optim.Adam([parameter], capturable=True), torch.optim.Adam([plain])
    for _ in range(3):
        parameter.grad, plain.grad = torch.ones(3, device="remora"), torch.ones(3)
        steps.step()
        expected.step()
    assert steps.state[parameter]["step"].device.type == "remora"
    torch.testing.assert_close(parameter.detach().cpu(), plain.detach())


@pytest.mark.parametrize("foreach", [None, False])
def test_state_is_saved_and_goes_on(connected: ModuleType, foreach: bool | None) -> None:
    """The optimizer's state goes through the CPU and comes back; parameter groups keep their rates."""

    def run(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)).to(device)
        inputs = torch.randn(5, 3).to(device)

        def make() -> torch.optim.Optimizer:
            groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.1}]
            return torch.optim.AdamW(groups, lr=0.01, foreach=foreach)

        def train(optimizer: torch.optim.Optimizer) -> None:
            for _ in range(3):
                optimizer.zero_grad(set_to_none=False)
                model(inputs).pow(2).mean().backward()
                optimizer.step()

        first = make()
        train(first)
        saved = io.BytesIO()
        torch.save(first.state_dict(), saved)
        saved.seek(0)
        second = make()
        second.load_state_dict(torch.load(saved, map_location="cpu"))
        train(second)
        return [parameter.detach().cpu() for parameter in model.parameters()]

    for got, expected in zip(run("remora"), run("cpu"), strict=True):
        assert torch.equal(got, expected)
