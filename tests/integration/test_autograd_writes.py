"""Writes in place, through views and into what backward needs: gradients, errors and version counters as on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from agreement import agrees, error_of, randn


@agrees
def test_version_counters(device: str) -> Any:
    x = torch.zeros(4).to(device)
    r = [x._version]
    x.add_(1)
    r.append(x._version)
    v = x[1:]
    v.mul_(2)
    r += [x._version, v._version]
    y = x.detach()
    y.add_(1)
    r += [x._version, y._version]
    with torch.autograd._unsafe_preserve_version_counter(x):
        x.add_(1)
    r.append(x._version)
    z = x.data
    z.add_(1)
    r += [x._version, z._version]
    x.requires_grad_()
    return (r, x)


@agrees
def test_saved_tensor_modified_in_place(device: str) -> Any:
    x = randn(device, 3)
    y = x.exp()
    y.add_(1)
    e1 = error_of(y.sum().backward)
    x = randn(device, 3)
    w = torch.ones(3).to(device)
    y = x * w
    w.mul_(2)
    e2 = error_of(y.sum().backward)
    x = randn(device, 3, 4)
    h = x.sigmoid()
    v = h[0]
    z = h * h
    v.zero_()
    e3 = error_of(z.sum().backward)
    return (e1, e2, e3)


@agrees
def test_saved_tensor_modified_through_detach(device: str) -> Any:
    x = randn(device, 3)
    y = x.exp()
    y.detach().zero_()
    return error_of(y.sum().backward)


@agrees
def test_saved_tensor_modified_through_data(device: str) -> Any:
    x = randn(device, 3)
    y = x.exp()
    y.data.zero_()
    y.sum().backward()
    return x.grad


@agrees
def test_leaf_modified_in_place(device: str) -> Any:
    x = randn(device, 3)

    def f():
        x.add_(1)

    def g():
        x[0].add_(1)

    def h():
        x[0] = 1

    return (error_of(f), error_of(g), error_of(h))


@agrees
def test_views_modified_in_place(device: str) -> Any:
    x = randn(device, 4, 4)
    y = x * 1
    y[0] *= 2
    y.t()[1].mul_(2)
    v = y.view(16)[::3]
    v.add_(x.view(16)[:6])
    y.diagonal().mul_(3)
    (y * y).sum().backward()
    return (y, v, x.grad, v._is_view(), v._base is y)


@agrees
def test_one_of_several_views_modified_in_place(device: str) -> Any:
    x = randn(device, 4, 4)

    def f():
        a, _b = (x * 1).chunk(2)
        a.mul_(2)

    def g():
        a = (x * 1).unbind(0)
        a[0].mul_(2)

    def h():
        a = (x * 1).split(2)
        a[0].add_(1)

    return (error_of(f), error_of(g), error_of(h))


@agrees
def test_views_made_without_grad(device: str) -> Any:
    base = randn(device, 4)
    b = base * 1
    with torch.no_grad():
        v = b[:2]

    def f():
        v.mul_(2)

    r = [error_of(f)]
    x = randn(device, 4)
    with torch.no_grad():
        x.add_(1)
        x[0] = 5
        x[1:3].mul_(2)
    (x * x).sum().backward()
    return (r, x, x.grad, x._version, v._version)


@agrees
def test_writes_into_slices(device: str) -> Any:
    x = randn(device, 6)
    y = torch.zeros(6).to(device)
    y[::2] = x[::2]
    y[1] = x[0] * x[1]
    y[2:4].mul_(x[2:4])
    (y**2).sum().backward()
    return (x.grad, y)


@agrees
def test_indexed_writes(device: str) -> Any:
    x = randn(device, 5, 4)
    v = randn(device, 4)
    y = x.clone()
    y[1] = v
    y[y > 1] = 0.5
    y[torch.tensor([0, 3]).to(device), 2] = v[:2]
    (y * y).sum().backward()
    return (x.grad, v.grad, y)


@agrees
def test_chain_of_writes(device: str) -> Any:
    x = randn(device, 6)
    y = x.clone()
    y.clamp_(0.1, 1)
    y.sigmoid_()
    y = y * 1
    y.add_(x).mul_(2).div_(x.abs() + 1).sub_(1).pow_(2)
    y.masked_fill_(x > 1, 0)
    y.index_fill_(0, torch.tensor([1]).to(device), 3.0)
    y.scatter_add_(0, torch.tensor([0, 0]).to(device), x[:2])
    y.sum().backward()
    return (x.grad, y, y._version)


@agrees
def test_copy_into_a_buffer(device: str) -> Any:
    x = randn(device, 4)
    buf = torch.zeros(4).to(device)
    buf.copy_(x)
    r = [buf.requires_grad]
    buf.sum().backward()
    return (r, x.grad)


@agrees
def test_detach_in_place(device: str) -> Any:
    a = randn(device, 3)
    b = a * 2
    b.detach_()
    r = [b.requires_grad, b.is_leaf]
    v = (a * 2)[0]
    return (r, error_of(v.detach_))


@agrees
def test_an_optimizer_step_before_backward_is_seen(device: str) -> Any:
    """Foreach ops write their tensors, and say so to autograd, as the writes of single tensors do."""
    found = []
    for foreach in (True, False):
        weight = randn(device, 3)
        steps = torch.optim.Adam([weight], foreach=foreach)
        loss = (weight * weight).sum()
        weight.grad = torch.ones(3).to(device)
        steps.step()
        found.append((error_of(loss.backward)[0], weight._version))
    tensors = [randn(device, 2, grad=False) for _ in range(2)]
    torch._foreach_mul_(tensors, [2.0, 3.0])
    torch._foreach_lerp_(tensors, tensors, 0.5)
    with torch.inference_mode():
        fresh = [torch.ones(2).to(device)]
        torch._foreach_add_(fresh, 1)
        torch._foreach_zero_(tensors)
    return found, [tensor._version for tensor in tensors], fresh[0].clone()
