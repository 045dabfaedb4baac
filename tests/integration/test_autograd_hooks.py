"""Hooks of tensors, nodes and modules: gradients, order and errors as on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from agreement import agrees, error_of, randn
from torch import nn


@agrees
def test_hooks_of_tensors_change_gradients(device: str) -> Any:
    x = randn(device, 3, 4)
    seen = []
    y = x.sin()
    y.register_hook(lambda g: seen.append(g.clone()))
    y.register_hook(lambda g: g * 2)
    x.register_hook(lambda g: g + 1)
    (y**2).sum().backward()
    return (x.grad, seen)


@agrees
def test_hooks_after_accumulation(device: str) -> Any:
    x = randn(device, 3)
    seen = []
    h = x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    (x * x).sum().backward()
    h.remove()
    (x * x).sum().backward()
    return (x.grad, seen)


@agrees
def test_hooks_of_nodes(device: str) -> Any:
    x = randn(device, 3)
    seen = []
    y = x.exp()
    y.grad_fn.register_hook(lambda gi, go: seen.append((gi[0].clone(), go[0].clone())))
    y.grad_fn.register_prehook(lambda go: (go[0] * 3,))
    y.sum().backward()
    return (x.grad, seen, y.grad_fn.name())


@agrees
def test_hooks_of_several_tensors(device: str) -> Any:
    a, b = (randn(device, 3), randn(device, 3))
    seen = []
    torch.autograd.graph.register_multi_grad_hook((a, b), lambda gs: seen.append([g.clone() for g in gs]))
    (a * b).sum().backward()
    return seen


@agrees
def test_hooks_of_modules(device: str) -> Any:
    m = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).to(device)
    seen = []
    m[0].register_forward_pre_hook(lambda mod, a: (a[0] * 2,))
    m[0].register_forward_hook(lambda mod, a, o: o + 1)
    m[2].register_full_backward_pre_hook(lambda mod, go: (go[0] * 3,))
    m[2].register_full_backward_hook(lambda mod, gi, go: seen.append((gi[0].clone(), go[0].clone())))
    m[0].register_full_backward_hook(lambda mod, gi, go: seen.append(go[0].clone()))
    m(randn(device, 3, 4)).sum().backward()
    return ([p.grad for p in m.parameters()], seen)


@agrees
def test_hooks_of_all_modules(device: str) -> Any:
    n = []
    h = nn.modules.module.register_module_forward_hook(lambda m, a, o: n.append(type(m).__name__))
    h2 = nn.modules.module.register_module_full_backward_hook(
        lambda m, gi, go: n.append("b" + type(m).__name__)
    )
    m = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).to(device)
    m(randn(device, 2, 3)).sum().backward()
    h.remove()
    h2.remove()
    return n


@agrees
def test_order_of_hooks(device: str) -> Any:
    x = randn(device, 3)
    o = []
    y = x * 2
    z = y * 3
    for n, t in (("x", x), ("y", y), ("z", z)):
        t.register_hook(lambda g, n=n: o.append(n))
    z.sum().backward()
    return o


@agrees
def test_removed_hook(device: str) -> Any:
    x = randn(device, 3)
    h = x.register_hook(lambda g: g * 2)
    x.sum().backward()
    h.remove()
    x.sum().backward()
    return x.grad


@agrees
def test_error_of_a_hook_gets_out(device: str) -> Any:
    """In PyTorch 2.13, a Python device's stream guard ends the process when it is asked with an error pending."""
    x = randn(device, 3)
    y = x.sin()

    def fail(grad: torch.Tensor) -> None:
        raise ValueError("this hook fails")

    hook = y.register_hook(fail)
    errors = [error_of((y * 2).sum().backward)]
    hook.remove()
    x.register_hook(lambda grad: (grad, grad))  # not a tensor
    errors.append(error_of(x.exp().sum().backward))
    return errors
