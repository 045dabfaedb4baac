"""Custom functions, checkpointing and hooks of saved tensors: as on the CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from agreement import agrees, error_of, randn
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, set_checkpoint_early_stop


@agrees
def test_function(device: str) -> Any:

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.k = 3
            return (x**3, x > 0)

        @staticmethod
        def backward(ctx, g, _):
            (x,) = ctx.saved_tensors
            return g * ctx.k * x * x

    x = randn(device, 5)
    y, m = Cube.apply(x)
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    g.sum().backward()
    return (y, m, g, x.grad, m.requires_grad)


@agrees
def test_outputs_without_gradient(device: str) -> Any:

    class S(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            v, i = x.sort()
            ctx.mark_non_differentiable(i)
            ctx.save_for_backward(i)
            return (v, i)

        @staticmethod
        def backward(ctx, g, gi):
            (i,) = ctx.saved_tensors
            r = torch.zeros_like(g)
            r.index_add_(0, i, g)
            return r

    x = randn(device, 5)
    v, i = S.apply(x)
    (v * torch.arange(5.0).to(device)).sum().backward()
    return (v, i, x.grad)


@agrees
def test_input_marked_dirty(device: str) -> Any:

    class Inc(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            x.add_(1)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx, g):
            return g * 2

    x = randn(device, 3)
    y = x * 1
    z = Inc.apply(y)
    Inc.apply(y[1:]) if False else z
    (z * z).sum().backward()
    return (z, y, x.grad, y is z, y._version, y.grad_fn.name(), error_of(lambda: Inc.apply(x)))


@agrees
def test_view_marked_dirty(device: str) -> Any:

    class Inc(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            x.add_(1)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx, g):
            return g * 2

    x = randn(device, 4)
    y = x * 1
    Inc.apply(y[1:])
    (y * y).sum().backward()
    return (y, x.grad)


@agrees
def test_setup_context(device: str) -> Any:

    class M(torch.autograd.Function):
        @staticmethod
        def forward(x, y, k):
            return x * y * k

        @staticmethod
        def setup_context(ctx, inputs, output):
            x, y, k = inputs
            ctx.save_for_backward(x, y)
            ctx.k = k
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx, g):
            x, y = ctx.saved_tensors
            return (g * y * ctx.k, g * x * ctx.k if ctx.needs_input_grad[1] else None, None)

    x, y = (randn(device, 3), randn(device, 3, grad=False))
    z = M.apply(x, y, 2.5)
    z.sum().backward()
    return (z, x.grad, y.grad)


@agrees
def test_once_differentiable(device: str) -> Any:

    class M(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @once_differentiable
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    x = randn(device, 3)
    (g,) = torch.autograd.grad(M.apply(x).sum(), x, create_graph=True)
    return (g, error_of(g.sum().backward))


@agrees
def test_saved_input_modified_in_place(device: str) -> Any:

    class M(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    x = randn(device, 3)
    y = x * 1
    z = M.apply(y)
    y.add_(1)
    return error_of(z.sum().backward)


@agrees
def test_backward_inside_backward(device: str) -> Any:

    class R(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            x = ctx.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                y = (x * x).sum()
            return torch.autograd.grad(y, x)[0] * g

    x = randn(device, 3)
    R.apply(x).sum().backward()
    return x.grad


@agrees
def test_third_derivative(device: str) -> Any:

    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            r = x.exp()
            ctx.save_for_backward(r)
            return r

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0]

    x = randn(device, 3)
    y = Exp.apply(x)
    (g1,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (g2,) = torch.autograd.grad(g1.sum(), x, create_graph=True)
    return (g1, g2, torch.autograd.grad(g2.sum(), x))


@agrees
def test_several_outputs(device: str) -> Any:

    class F2(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y, flag=True):
            ctx.flag = flag
            return (x + y, x * 2, None)

        @staticmethod
        def backward(ctx, a, b, c):
            return (a + 2 * b, a, None)

    x, y = (randn(device, 3), randn(device, 3))
    a, b, c = F2.apply(x, y)
    (a.sum() + b.sum()).backward()
    return (x.grad, y.grad, c)


@agrees
def test_input_returned(device: str) -> Any:

    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, g):
            return g * 3

    class V(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view(-1)

        @staticmethod
        def backward(ctx, g):
            return g.view(2, 2)

    x = randn(device, 2, 2)
    y = Same.apply(x)
    y.sum().backward()
    v = V.apply(x)
    def_err = error_of(lambda: v.add_(1))
    return (x.grad, y is x, def_err)


@agrees
def test_wrong_gradients_are_refused(device: str) -> Any:

    class B(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return (g[:1], g)

    class C(B):
        @staticmethod
        def backward(ctx, g):
            return torch.zeros(7, device=g.device)

    x = randn(device, 3)
    return (error_of(B.apply(x).sum().backward), error_of(C.apply(x).sum().backward))


@agrees
def test_checkpoints(device: str) -> Any:
    r = []
    for re in (True, False):
        torch.manual_seed(1)
        m = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).to(device)
        x = randn(device, 2, 4)
        y = checkpoint(m, x, use_reentrant=re)
        y.pow(2).sum().backward()
        r.append((y, x.grad, [p.grad for p in m.parameters()]))
    y = checkpoint_sequential(m, 2, x, use_reentrant=False)
    r.append(y)
    return r


@agrees
def test_checkpoint_without_early_stop(device: str) -> Any:

    x = randn(device, 4, 4)
    with set_checkpoint_early_stop(False):
        y = checkpoint(lambda x: (x @ x).exp(), x, use_reentrant=False)
    y.sum().backward()
    return x.grad


@agrees
def test_checkpoint_that_recomputes_otherwise(device: str) -> Any:
    n = [0]

    def f(x):
        n[0] += 1
        return x.sin() if n[0] == 1 else x.sin().cos()

    x = randn(device, 4)
    y = checkpoint(f, x, use_reentrant=False)
    e = error_of(y.sum().backward)
    return e[0]


@agrees
def test_selective_checkpoint(device: str) -> Any:
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def pol(ctx, op, *a, **k):
        return (
            CheckpointPolicy.MUST_SAVE
            if op == torch.ops.aten.mm.default
            else CheckpointPolicy.PREFER_RECOMPUTE
        )

    x = randn(device, 4, 4)

    def f(x):
        return torch.sigmoid(x @ x).sin()

    y = checkpoint(f, x, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, pol))
    y.sum().backward()
    return (y, x.grad)


@agrees
def test_saved_tensors_packed(device: str) -> Any:
    x = randn(device, 3, 4)
    n = []

    def pack(t):
        n.append(tuple(t.shape))
        return t * 2

    def unpack(t):
        return t / 2

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = (x.exp() * x.sin()).sum()
    y.backward()
    return (x.grad, n)


@agrees
def test_saved_tensors_on_cpu(device: str) -> Any:
    x = randn(device, 3, 4)
    with torch.autograd.graph.save_on_cpu():
        y = (x.exp() * x.sin()).sum()
    y.backward()
    return x.grad


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected")
@agrees
def test_anomaly_mode(device: str) -> Any:
    x = torch.tensor([-1.0, 4.0]).to(device).requires_grad_()

    def f():
        with torch.autograd.detect_anomaly():
            (x.sqrt() * torch.tensor([0.0, 1.0]).to(device)).sum().backward()

    return error_of(f)


@agrees
def test_dispatch_mode(device: str) -> Any:

    n = []

    class M(TorchDispatchMode):
        def __torch_dispatch__(self, f, t, a=(), k=None):
            n.append(str(f))
            return f(*a, **k or {})

    x = randn(device, 3)
    with M():
        y = (x.sin() * 2).sum()
    y.backward()
    return (n, x.grad)
