"""A training step on the executor against the same on the local CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, foreach=False),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the executor of the tests: with more, PyTorch adds in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
