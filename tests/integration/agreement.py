"""Runs one program on the CPU and on the executor and compares all that it gives, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map

Program = Callable[[str], Any]  # device to a tree of tensors and plain values


def agrees(program: Program) -> Callable[[ModuleType], None]:
    """A test that a program gives on an executor what it gives on the CPU."""

    def test(connected: ModuleType) -> None:
        assert_agree(program)

    test.__doc__ = program.__doc__
    return test


def assert_agree(program: Program) -> None:
    expected, got = outcome(program, "cpu"), outcome(program, "remora")
    expected_items, expected_tree = tree_flatten(expected)
    items, tree = tree_flatten(got)
    assert tree == expected_tree
    for number, (item, wanted) in enumerate(zip(items, expected_items, strict=True)):
        if isinstance(wanted, torch.Tensor):
            same = torch.equal(item.nan_to_num(), wanted.nan_to_num()) and item.isnan().equal(wanted.isnan())
            assert same, f"result {number}: {item}, not {wanted}"
        else:
            assert item == wanted, f"result {number}: {item!r}, expected {wanted!r}"


def outcome(program: Program, device: str) -> Any:
    """What the program gives: with every tensor as (dtype, shape, requires_grad, CPU copy)."""
    torch.manual_seed(0)
    return tree_map(_plain, program(device))


def _plain(item: Any) -> Any:
    if not isinstance(item, torch.Tensor):
        return item
    return item.dtype, tuple(item.shape), item.requires_grad, item.detach().cpu()


def randn(device: str, *shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> torch.Tensor:
    """Drawn on the CPU, and so the same on every device."""
    return torch.randn(*shape, dtype=dtype).to(device).requires_grad_(grad)


def grads(model: nn.Module) -> list[Any]:
    return [parameter.grad for parameter in model.parameters()]


def trained(model: nn.Module, *inputs: torch.Tensor) -> Any:
    """Outputs, and the gradients of a sum of squares: of the parameters and of the inputs."""
    outputs = model(*inputs)
    leaves = torch.utils._pytree.tree_leaves(outputs)
    sum(leaf.float().pow(2).sum() for leaf in leaves if leaf.requires_grad).backward()
    return outputs, grads(model), [tensor.grad for tensor in inputs]


def error_of(act: Callable[[], Any]) -> tuple[str, str]:
    """Type and text of what `act` raises, without the names of devices and tensor types."""
    try:
        act()
    except Exception as error:
        text = re.sub(r"remora\w+Type|remora(:0)?|cpu|RemoraTensor|torch\.\w+Tensor", "*", str(error))
        return type(error).__name__, text
    return "", "nothing raised"
