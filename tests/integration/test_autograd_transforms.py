"""Second derivatives, forward mode and torch.func: as on the CPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from agreement import agrees, assert_agree, error_of, randn
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F  # noqa: N812

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


@agrees
def test_double_backward(device: str) -> Any:
    x = randn(device, 4, 3)
    w = randn(device, 3, 2)
    y = torch.tanh(x @ w).pow(3).sum()
    (g,) = torch.autograd.grad(y, x, create_graph=True)
    (g**2).sum().backward()
    return (g, x.grad, w.grad)


@agrees
def test_double_backward_of_a_convolution(device: str) -> Any:
    x = randn(device, 2, 2, 5, 5)
    w = randn(device, 3, 2, 3, 3)
    (g,) = torch.autograd.grad(F.conv2d(x, w).pow(3).sum(), x, create_graph=True)
    g.pow(2).sum().backward()
    return (x.grad, w.grad)


@agrees
def test_double_backward_of_batch_norm(device: str) -> Any:
    m = nn.BatchNorm1d(3).to(device)
    x = randn(device, 5, 3)
    (g,) = torch.autograd.grad(m(x).pow(3).sum(), x, create_graph=True)
    g.pow(2).sum().backward()
    return (x.grad, m.weight.grad)


@agrees
def test_gradient_penalty(device: str) -> Any:
    critic = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 1)).to(device)
    x = randn(device, 6, 4)
    o = critic(x)
    (g,) = torch.autograd.grad(o, x, torch.ones_like(o), create_graph=True)
    ((g.norm(2, dim=1) - 1) ** 2).mean().backward()
    return ([p.grad for p in critic.parameters()], x.grad)


@agrees
def test_gradient_through_gradient_steps(device: str) -> Any:
    w = randn(device, 4, 1)
    x, y = (randn(device, 5, 4, grad=False), randn(device, 5, 1, grad=False))
    f = w
    for _ in range(3):
        (g,) = torch.autograd.grad(F.mse_loss(x @ f, y), f, create_graph=True)
        f = f - 0.1 * g
    F.mse_loss(x @ f, y).backward()
    return w.grad


@agrees
def test_hessian_vector_product(device: str) -> Any:
    m = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).to(device)
    x = randn(device, 3, 4, grad=False)
    ps = list(m.parameters())
    g = torch.autograd.grad(m(x).sum(), ps, create_graph=True)
    v = [torch.ones_like(p) for p in ps]
    return torch.autograd.grad(
        sum(((a * b).sum() for a, b in zip(g, v, strict=False))),
        ps,
        allow_unused=True,
        materialize_grads=True,
    )


@agrees
def test_batched_gradients(device: str) -> Any:
    x = randn(device, 3, 4)
    y = x.sin() @ x.t()
    v = torch.randn(5, 3, 3).to(device)
    return torch.autograd.grad(y, x, v, is_grads_batched=True)


@agrees
def test_gradcheck(device: str) -> Any:
    x = randn(device, 3, 4, dtype=torch.float64)
    w = randn(device, 4, 2, dtype=torch.float64)

    def f(a, b):
        return torch.tanh(a @ b).sum(0)

    return (
        torch.autograd.gradcheck(f, (x, w)),
        torch.autograd.gradgradcheck(f, (x, w)),
        torch.autograd.gradcheck(f, (x, w), fast_mode=True),
    )


@agrees
def test_autograd_functional(device: str) -> Any:
    def f(x):
        return torch.tanh(x[:, None] * x).sum(0)

    x = randn(device, 4, grad=False)
    functional = torch.autograd.functional
    return (
        functional.jacobian(f, x),
        functional.jacobian(f, x, vectorize=True),
        functional.hessian(lambda x: f(x).sum(), x),
        functional.vjp(f, x, x),
        functional.jvp(f, x, x),
        functional.hvp(lambda x: f(x).sum(), x, x),
        functional.vhp(lambda x: f(x).sum(), x, x),
    )


@agrees
def test_forward_mode(device: str) -> Any:

    x = randn(device, 3, 4, grad=False)
    t = torch.randn(3, 4).to(device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, t)
        y = (dual.sin() @ dual.t()).softmax(-1)
        o = forward_ad.unpack_dual(y)
        z = dual * 1
        z.mul_(2)
        z[0].exp_()
        oz = forward_ad.unpack_dual(z)
        r = [o.primal, o.tangent, oz.primal, oz.tangent]
    return (r, error_of(lambda: forward_ad.make_dual(x, t)))


@agrees
def test_forward_over_reverse(device: str) -> Any:

    x = randn(device, 3)
    t = torch.randn(3).to(device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, t)
        y = (dual.sin() * dual).sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        o = forward_ad.unpack_dual(g)
        return (o.primal.clone(), None if o.tangent is None else o.tangent.clone())


@agrees
def test_nested_transforms(device: str) -> Any:
    x = randn(device, 4, grad=False)

    def f(x):
        return (x.sin() * x).sum()

    return (
        torch.func.jvp(lambda x: torch.func.jvp(f, (x,), (x,))[1], (x,), (x,)),
        torch.func.hessian(f)(x),
        torch.func.jacfwd(torch.func.jacfwd(f))(x),
        torch.func.jacrev(torch.func.jacrev(f))(x),
    )


@agrees
def test_grad_of_a_function(device: str) -> Any:
    def f(x):
        return (x.sin() ** 2).sum()

    x = randn(device, 4, grad=False)
    return (
        torch.func.grad(f)(x),
        torch.func.grad(torch.func.grad(lambda x: x.sin().prod()))(x[0]),
        torch.func.grad_and_value(f)(x),
        torch.func.grad(lambda x: (f(x), x * 2), has_aux=True)(x),
    )


@agrees
def test_vmap(device: str) -> Any:
    x = randn(device, 5, 3, grad=False)
    y = randn(device, 3, grad=False)
    matrices = randn(device, 5, 3, 3, grad=False)
    return (
        torch.func.vmap(torch.dot, (0, None))(x, y),
        torch.func.vmap(lambda m, v: m @ v + 1)(matrices, x),
        torch.func.vmap(torch.func.grad(lambda v: (v**3).sum()))(x),
        torch.func.vmap(lambda v: v.softmax(0), in_dims=1, out_dims=1)(x),
    )


@agrees
def test_vmap_with_writes(device: str) -> Any:
    x = randn(device, 3, 4, grad=False)

    def f(v):
        v = v.clone()
        v.add_(1)
        v[0] = 0
        return v

    return torch.vmap(f)(x)


@agrees
def test_vmap_in_chunks(device: str) -> Any:
    x = randn(device, 8, 4, grad=False)
    return (
        torch.func.vmap(lambda v: v.exp().sum(), chunk_size=3)(x),
        torch.vmap(lambda v: v.index_add(0, torch.tensor([0, 1]).to(device), v[:2]))(x),
        torch.vmap(lambda v: (v, v * 2), out_dims=(0, None) if False else 0)(x),
    )


@agrees
def test_jacobians(device: str) -> Any:
    def f(x):
        return torch.tanh(x[:, None] * x).sum(0)

    x = randn(device, 4, grad=False)
    return (
        torch.func.jacrev(f)(x),
        torch.func.jacfwd(f)(x),
        torch.func.hessian(lambda x: f(x).sum())(x),
        torch.func.jvp(f, (x,), (x,)),
        torch.func.vjp(f, x)[1](x),
        torch.func.jvp(f, (x,), (x,)),
    )


@agrees
def test_functional_call(device: str) -> Any:
    m = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).to(device)
    x = randn(device, 5, 3, grad=False)
    p = {k: v.detach() for k, v in m.named_parameters()}
    b = {k: v.detach().clone() for k, v in m.named_buffers()}
    o = torch.func.functional_call(m, (p, b), (x,))
    g = torch.func.grad(lambda p: torch.func.functional_call(m, (p, b), (x,)).pow(2).sum())(p)
    return (o, g, b)


@agrees
def test_ensemble(device: str) -> Any:
    ms = [nn.Linear(3, 2).to(device) for _ in range(4)]
    p, b = torch.func.stack_module_state(ms)
    base = nn.Linear(3, 2).to("meta")
    x = randn(device, 7, 3, grad=False)
    return torch.func.vmap(lambda p, b, x: torch.func.functional_call(base, (p, b), (x,)), (0, 0, None))(
        p, b, x
    )


@agrees
def test_gradients_per_sample(device: str) -> Any:
    m = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).to(device)
    p = {k: v.detach() for k, v in m.named_parameters()}
    x, y = (randn(device, 6, 3, grad=False), randn(device, 6, grad=False))

    def f(p, x, y):
        return F.mse_loss(torch.func.functional_call(m, p, (x[None],)).squeeze(), y)

    return torch.func.vmap(torch.func.grad(f), (None, 0, 0))(p, x, y)


@agrees
def test_transformed_convolution(device: str) -> Any:
    x = randn(device, 3, 2, 6, 6, grad=False)
    w = randn(device, 4, 2, 3, 3, grad=False)
    return (
        torch.func.vmap(lambda x: F.conv2d(x[None], w)[0])(x),
        torch.func.grad(lambda w: F.conv2d(x, w).pow(2).sum())(w),
        torch.func.jvp(lambda w: F.conv2d(x, w), (w,), (w,)),
        torch.func.vmap(torch.func.grad(lambda w, x: F.conv2d(x[None], w).pow(2).sum()), (None, 0))(w, x),
    )


@agrees
def test_transformed_detach(device: str) -> Any:
    w = randn(device, 4, 4, grad=False)
    return torch.func.grad(lambda x: (x * F.linear(x.detach(), w)).sum())(randn(device, 2, 4, grad=False))


@agrees
def test_transformed_no_grad(device: str) -> Any:
    w = randn(device, 4, 4, grad=False)

    def f(x):
        with torch.no_grad():
            y = F.linear(x, w).softmax(-1)
        return (x * y).sum()

    return (
        torch.func.grad(f)(randn(device, 2, 4, grad=False)),
        torch.func.vmap(torch.func.grad(f))(randn(device, 3, 2, 4, grad=False)),
    )


@agrees
def test_custom_function_transformed(device: str) -> Any:

    class M(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])
            ctx.save_for_forward(inputs[0])

        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

        @staticmethod
        def jvp(ctx, t):
            return 2 * t * ctx.saved_tensors[0]

    x = randn(device, 3, grad=False)
    return (
        torch.func.jvp(M.apply, (x,), (torch.ones(3).to(device),)),
        torch.func.vmap(torch.func.grad(M.apply))(x),
    )


@agrees
def test_functionalize(device: str) -> Any:

    def f(x):
        y = x.clone()
        y[0].add_(1)
        return y

    return torch.func.functionalize(f)(randn(device, 3, 2, grad=False))


WHOLE = {
    "linear": lambda x, w: F.linear(x, w),
    "matmul": lambda x, w: x @ w,
    "rms_norm": lambda x, w: F.rms_norm(x, (4,)),
    "softmax": lambda x, w: x.softmax(-1),
    "log_softmax": lambda x, w: x.log_softmax(-1),
    "cross_entropy": lambda x, w: F.cross_entropy(x, torch.tensor([0, 1]).to(x.device)),
    "attention": lambda x, w: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "cosine_similarity": lambda x, w: F.cosine_similarity(x, x * 2 + 1),
    "max_pool1d": lambda x, w: F.max_pool1d(x, 2),
    "adaptive_avg_pool2d": lambda x, w: F.adaptive_avg_pool2d(x[None], 1),
    "embedding": lambda x, w: F.embedding(torch.tensor([0, 1]).to(x.device), x),
    "einsum": lambda x, w: torch.einsum("ij,jk->ik", x, w),
}


@pytest.mark.parametrize("op", WHOLE)
def test_tangents_go_through_composites(connected: ModuleType, op: str) -> None:
    """What is one row in inference has to come apart inside a dual level, or its tangent is lost."""

    def program(device: str) -> Any:
        x, w, tangent = (randn(device, n, 4, grad=False) for n in (2, 4, 2))

        def apply(x: torch.Tensor) -> torch.Tensor:
            return WHOLE[op](x, w)

        with forward_ad.dual_level():
            primal, moved = forward_ad.unpack_dual(apply(forward_ad.make_dual(x, tangent)))
        return primal, moved, torch.func.jacrev(apply)(x), torch.func.jacfwd(apply)(x)

    assert_agree(program)


def test_tangent_of_layer_norm(connected: ModuleType) -> None:
    """Not bit for bit: for tensor subclasses PyTorch's formula multiplies in another order."""
    found = []
    for device in ("cpu", "remora"):
        torch.manual_seed(0)
        x, tangent = randn(device, 2, 4, grad=False), randn(device, 2, 4, grad=False)
        found.append(torch.func.jvp(lambda x: F.layer_norm(x, (4,)), (x,), (tangent,))[1].cpu())
    torch.testing.assert_close(*found)


@agrees
def test_absent_tangents_are_exact_zeros(device: str) -> Any:
    """Zero times infinity is zero, where the zero is a tangent that is not there."""
    x = torch.tensor([1.0, float("inf")]).to(device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        return forward_ad.unpack_dual(dual * x.detach()).tangent, forward_ad.unpack_dual(x * 2).tangent
