"""Gradients, grad modes and their errors as on the CPU."""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

import pytest
import torch
from agreement import agrees, error_of, randn
from torch import nn


@agrees
def test_gradients_accumulate_and_are_zeroed(device: str) -> Any:
    m = nn.Linear(3, 2).to(device)
    r = []
    for i in range(3):
        m(torch.ones(2, 3).to(device) * i).sum().backward()
        r.append(m.weight.grad.clone())
    g = m.weight.grad
    m.zero_grad(set_to_none=False)
    r += [g.clone(), g is m.weight.grad]
    m.zero_grad()
    r.append(m.weight.grad is None)
    return r


@agrees
def test_retained_gradients_and_graph(device: str) -> Any:
    x = randn(device, 3)
    y = x * 2
    y.retain_grad()
    z = (y * y).sum()
    z.backward(retain_graph=True)
    z.backward()
    return (x.grad, y.grad, y.retains_grad)


@agrees
def test_assigned_gradients(device: str) -> Any:
    x = randn(device, 3)
    x.grad = torch.ones(3).to(device) * 2
    (x * 3).sum().backward()

    def bad():
        x.grad = torch.ones(4).to(device)

    def bad2():
        x.grad = torch.ones(3, dtype=torch.float64).to(device)

    return (x.grad, error_of(bad), error_of(bad2))


@agrees
def test_two_losses_of_one_graph(device: str) -> Any:
    m = nn.Linear(3, 3).to(device)
    x = randn(device, 2, 3, grad=False)
    h = m(x)
    h.sum().backward(retain_graph=True)
    h.pow(2).sum().backward()
    return m.weight.grad


@agrees
def test_backward_into_some_inputs(device: str) -> Any:
    a, b = (randn(device, 3), randn(device, 3))
    (a * b).sum().backward(inputs=[a])
    return (a.grad, b.grad)


@agrees
def test_backward_from_given_gradients(device: str) -> Any:
    a = randn(device, 3)
    y = a * 2
    y.backward(gradient=torch.ones(3).to(device))
    z = a * 3
    torch.autograd.backward([z, z * 2], [torch.ones(3).to(device)] * 2)
    return a.grad


@agrees
def test_unused_parameters(device: str) -> Any:
    a, b = (nn.Linear(3, 3).to(device), nn.Linear(3, 3).to(device))
    a(randn(device, 2, 3)).sum().backward()
    return (a.weight.grad, b.weight.grad)


@agrees
def test_second_backward_is_refused(device: str) -> Any:
    x = randn(device, 3)
    y = x.exp().sum()
    y.backward()
    return error_of(y.backward)


@agrees
def test_backward_of_what_has_no_gradient(device: str) -> Any:
    x = randn(device, 3)
    return (error_of((x * 2).backward), error_of(lambda: torch.zeros(1).to(device).backward()))


@agrees
def test_unused_inputs(device: str) -> Any:
    x, z = (randn(device, 3), randn(device, 3))
    y = (x * 2).sum()
    e = error_of(lambda: torch.autograd.grad(y, (x, z), retain_graph=True))
    a = torch.autograd.grad(y, (x, z), allow_unused=True, retain_graph=True)
    b = torch.autograd.grad(y, (x, z), materialize_grads=True)
    return (e, a, b)


@agrees
def test_indexed_reads(device: str) -> Any:
    x = randn(device, 5, 4)
    i = torch.tensor([0, 2, 2]).to(device)
    y = (
        x[i].sum()
        + x[:, 1].exp().sum()
        + x[x > 0].sum()
        + x.gather(1, torch.zeros(5, 2, dtype=torch.long).to(device)).sum()
        + x.index_select(0, i).pow(2).sum()
        + x.take(i).sum()
        + x.masked_select(x < 0).sum()
    )
    y.backward()
    return x.grad


@agrees
def test_leaves(device: str) -> Any:
    a = randn(device, 3)
    b = a * 2
    c = b.detach()
    e = b.clone().requires_grad_()
    return (a.is_leaf, b.is_leaf, c.is_leaf, c.requires_grad, e.grad_fn.name(), b.output_nr)


@agrees
def test_what_cannot_need_a_gradient(device: str) -> Any:
    return (
        error_of(lambda: torch.zeros(3, dtype=torch.int64).to(device).requires_grad_()),
        error_of(lambda: setattr(randn(device, 3) * 2, "requires_grad", False)),
    )


@agrees
def test_frozen_module(device: str) -> Any:
    m = nn.Linear(3, 3).to(device).requires_grad_(False)
    return ([p.requires_grad for p in m.parameters()], m(torch.ones(1, 3).to(device)).requires_grad)


@agrees
def test_nested_grad_modes(device: str) -> Any:
    x = randn(device, 3)
    with torch.no_grad():
        a = x * 2
        with torch.enable_grad():
            b = x * 2
    with torch.set_grad_enabled(False):
        c = x * 2
    return (a.requires_grad, b.requires_grad, c.requires_grad)


@agrees
def test_no_grad_as_decorator(device: str) -> Any:

    @torch.no_grad()
    def f(x):
        return x * 2

    return f(randn(device, 3)).requires_grad


@agrees
def test_inference_tensors(device: str) -> Any:
    with torch.inference_mode():
        t = torch.ones(3).to(device) * 2
        i = t.is_inference()
    x = randn(device, 3)

    def a():
        (x * t).sum().backward()

    def b():
        t.add_(1)

    def c():
        t.requires_grad_()

    return (i, error_of(a), error_of(b), error_of(c), (t + 1).is_inference(), t.clone().is_inference())


@agrees
def test_inference_mode_inside_and_outside(device: str) -> Any:
    x = randn(device, 3)
    y = x * 2
    with torch.inference_mode():
        z = y * 3
        w = y.view(3, 1)
        f = (z.requires_grad, z.is_inference(), w.is_inference())
        y2 = error_of(lambda: y.add_(1))
        with torch.inference_mode(False):
            q = (x * 2).sum()
    q.backward()
    return (f, y2, x.grad)


@agrees
def test_graph_over_two_devices(device: str) -> Any:
    x = torch.randn(3).requires_grad_()
    y = x.to(device) * 2
    z = y.cpu().exp() + x
    z.sum().backward()
    return x.grad


@agrees
def test_gradient_through_a_move(device: str) -> Any:
    x = randn(device, 3)
    y = (x * 2).to("cpu")
    (y * y).sum().backward()
    return (x.grad, x.grad.device.type == device)


@agrees
def test_complex_gradients(device: str) -> Any:
    x = torch.randn(4, dtype=torch.complex64).to(device).requires_grad_()
    y = (x * x.conj()).real.sum() + x.abs().sum() + torch.view_as_real(x).pow(2).sum() + x.angle().sum()
    y.backward()
    return x.grad


@agrees
def test_linear_algebra(device: str) -> Any:
    a = randn(device, 3, 3)
    s = a @ a.t() + 3 * torch.eye(3).to(device)
    y = (
        torch.linalg.inv(s).sum()
        + torch.linalg.det(s)
        + torch.linalg.cholesky(s).sum()
        + torch.linalg.solve(s, a).sum()
        + torch.linalg.eigvalsh(s).sum()
        + torch.linalg.svdvals(a).sum()
        + torch.linalg.slogdet(s)[1]
        + torch.linalg.norm(a)
        + torch.linalg.qr(a)[1].sum()
    )
    y.backward()
    return (a.grad, y)


@agrees
def test_fourier_transform(device: str) -> Any:
    x = randn(device, 8)
    torch.fft.rfft(x).abs().sum().backward()
    return x.grad


@agrees
def test_bfloat16(device: str) -> Any:
    x = randn(device, 4, 4, dtype=torch.bfloat16)
    (x @ x).float().sum().backward()
    return x.grad


@agrees
def test_gradients_in_threads(device: str) -> Any:

    m = nn.Linear(4, 4).to(device)
    xs = [randn(device, 2, 4) for _ in range(4)]

    def go(x):
        for _ in range(5):
            torch.autograd.grad(m(x).pow(2).sum(), x)[0]
        x.g = torch.autograd.grad(m(x).pow(2).sum(), x)[0]

    ts = [threading.Thread(target=go, args=(x,)) for x in xs]
    [t.start() for t in ts]
    [t.join() for t in ts]
    return [x.g for x in xs]


@agrees
def test_backward_in_a_thread(device: str) -> Any:

    m = nn.Linear(4, 4).to(device)
    x = randn(device, 2, 4, grad=False)
    r = []

    def go():
        m(x).sum().backward()
        r.append(1)

    for _ in range(3):
        t = threading.Thread(target=go)
        t.start()
        t.join()
    return (m.weight.grad, r)


@agrees
def test_straight_through_estimator(device: str) -> Any:
    x = randn(device, 5)
    y = x + (x.round() - x).detach()
    y.sum().backward()
    return (x.grad, y)


@agrees
def test_complex_products(device: str) -> Any:
    w = torch.randn(3, 3, dtype=torch.complex64).to(device).requires_grad_()
    x = torch.randn(2, 3, dtype=torch.complex64).to(device)
    (x @ w).abs().sum().backward()
    return w.grad


@agrees
def test_gradient_edges(device: str) -> Any:
    x = randn(device, 3)
    y = x * 2
    with torch.autograd.graph.disable_saved_tensors_hooks("no"):
        z = y * 2
    e = torch.autograd.graph.get_gradient_edge(y)
    r = torch.autograd.grad(z.sum(), e)
    return (
        r,
        y.grad_fn.next_functions[0][0].name(),
        y.grad_fn._saved_other if hasattr(y.grad_fn, "_saved_other") else None,
    )


def test_error_of_an_op_in_backward_keeps_its_traceback(connected: ModuleType) -> None:
    class Refused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return torch.ops.aten.add.Tensor(grad, object())

    x = randn("remora", 3)
    with pytest.raises(RuntimeError) as caught:
        Refused.apply(x).sum().backward()
    assert "aten::add" in str(caught.value)
    (x * x).sum().backward()
    assert torch.equal(x.grad.cpu(), 2 * x.detach().cpu())


@agrees
def test_views_in_inference_mode_stay_normal_tensors(device: str) -> Any:
    x, frozen = randn(device, 3, 4), randn(device, 3, 4, grad=False)
    found = []
    for tensor in (x, frozen):
        with torch.inference_mode():
            views = [
                tensor.t(),
                tensor[0],
                tensor.view(12),
                tensor.detach(),
                tensor.chunk(2)[1],
            ]
            kinds = [view.is_inference() for view in views]
            fresh = (tensor + 1)[0]
        found.append((views, kinds, fresh.is_inference()))
    with torch.inference_mode():
        frozen[1].add_(1)
    return found, frozen, frozen._version


@agrees
def test_graph_that_ends_on_the_cpu(device: str) -> Any:
    x = randn(device, 3)
    loss = x.sin().cpu().pow(2).sum()
    loss.backward()
    return x.grad, loss


@agrees
def test_products_in_inference_mode_fold_as_on_the_cpu(device: str) -> Any:
    """A weight that wants gradients is folded into one product, whatever the mode; other bits than a batched one."""
    x, weight = randn(device, 3, 4, 5, grad=False), randn(device, 6, 5)
    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            batch = x.transpose(0, 1)
            found += [nn.functional.linear(batch, weight).clone(), (batch @ weight.t()).clone()]
    return found
