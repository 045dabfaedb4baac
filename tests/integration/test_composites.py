"""Composite ops on the executor take the kernels, and so have the bits, that they have on the local CPU."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch.nn import functional


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "mish": functional.mish,
    "channel_shuffle": lambda x: torch.channel_shuffle(x, 2) * 3,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_of_the_devices_own_kernels(connected: ModuleType, name: str) -> None:
    def gradient(device: str) -> torch.Tensor:
        x = _random(5, 4, 7, 9).to(device).requires_grad_()
        ACTIVATIONS[name](x).square().sum().backward()
        return x.grad.cpu()

    assert torch.equal(gradient("remora"), gradient("cpu"))


# A weight that wants gradients makes PyTorch fold a batch into one product, even while none are recorded.
PRODUCTS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "linear": lambda x, weight: functional.linear(x.transpose(0, 1), weight),
    "linear, odd strides of size 1": lambda x, weight: functional.linear(
        x[:, :, :1].contiguous().transpose(1, 2), weight
    ),
    "matmul, batch first": lambda x, weight: x.transpose(0, 1) @ weight,
    "matmul, batch last": lambda x, weight: weight @ x,
    "matmul, vector first": lambda x, weight: weight[0] @ x,
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("trained", [False, True])
def test_products_fold_as_they_do_locally(connected: ModuleType, name: str, trained: bool) -> None:
    def product(device: str) -> torch.Tensor:
        x, weight = _random(8, 32, 32).to(device), _random(32, 32).to(device).requires_grad_(trained)
        with torch.no_grad():
            return PRODUCTS[name](x, weight).cpu()

    assert torch.equal(product("remora"), product("cpu"))
