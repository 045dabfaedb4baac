"""Modules as programs change them, parameters, buffers, state and dtypes: as on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import torch
from agreement import agrees, error_of, grads, randn, trained
from torch import nn


@agrees
def test_dtypes_of_a_module(device: str) -> Any:
    m = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(device)
    r = []
    for f in (
        lambda m: m.double(),
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.float(),
        lambda m: m.to(torch.float64),
        lambda m: m.type(torch.float32),
    ):
        m = f(m)
        r.append(
            [(n, p.dtype, p.requires_grad, isinstance(p, nn.Parameter)) for n, p in m.named_parameters()]
            + [(n, b.dtype) for n, b in m.named_buffers()]
        )
    r.append(m(randn(device, 5, 3)))
    return r


@agrees
def test_module_from_meta(device: str) -> Any:
    with torch.device("meta"):
        m = nn.Linear(3, 4)
    m = m.to_empty(device=device)
    nn.init.ones_(m.weight)
    nn.init.zeros_(m.bias)
    return (m(randn(device, 2, 3)), m.weight.device.type == device)


@agrees
def test_apply(device: str) -> Any:
    m = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(device)

    def init(x):
        if isinstance(x, nn.Linear):
            nn.init.constant_(x.weight, 0.5)
            nn.init.eye_(x.weight)
            x.bias.data.fill_(0.1)

    m.apply(init)
    return list(m.parameters())


@agrees
def test_device_as_context(device: str) -> Any:
    with torch.device(device):
        m = nn.Linear(3, 4)
        x = torch.ones(2, 3)
    return (x.device.type == device, m.weight.device.type == device, m(x).shape)


@agrees
def test_weight_norm(device: str) -> Any:
    r = []
    for w in (nn.utils.parametrizations.weight_norm,):
        m = w(nn.Linear(4, 3)).to(device)
        r.append((trained(m, randn(device, 2, 4)), m.weight, sorted(m.state_dict())))
        m2 = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 2).to(device))
        r.append(trained(m2, randn(device, 1, 2, 4)))
    torch.nn.utils.parametrize.remove_parametrizations(m, "weight")
    r.append((m.weight, isinstance(m.weight, nn.Parameter)))
    return r


@agrees
def test_spectral_norm(device: str) -> Any:
    torch.manual_seed(1)
    m = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)).to(device)
    return ([trained(m, randn(device, 2, 4)) for _ in range(2)], m.weight, dict(m.named_buffers()))


@agrees
def test_orthogonal(device: str) -> Any:
    r = []
    for k in ("householder", "cayley", "matrix_exp"):
        m = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map=k).to(device)
        r.append(trained(m, randn(device, 2, 4)))
    return r


@agrees
def test_parametrization(device: str) -> Any:

    class Sym(nn.Module):
        def forward(self, x):
            return x.triu() + x.triu(1).transpose(-1, -2)

    m = nn.Linear(3, 3).to(device)
    nn.utils.parametrize.register_parametrization(m, "weight", Sym())
    with nn.utils.parametrize.cached():
        o = m(randn(device, 2, 3))
    return (o, m.weight, trained(m, randn(device, 2, 3)))


@agrees
def test_replaced_parameters(device: str) -> Any:
    m = nn.Linear(3, 4).to(device)
    w = {"weight": torch.ones(4, 3).to(device)}
    return (torch.func.functional_call(m, w, (randn(device, 2, 3),)), m(randn(device, 2, 3)))


@agrees
def test_swapped_tensors(device: str) -> Any:
    a, b = (torch.ones(3).to(device), torch.zeros(4).to(device))
    ia, ib = (id(a), id(b))
    torch.utils.swap_tensors(a, b)
    m = nn.Linear(2, 2).to(device)
    n = nn.Parameter(torch.ones(2, 2).to(device))
    torch.utils.swap_tensors(m.weight, n)
    return (a, b, m.weight, (ia, ib) == (id(a), id(b)))


@agrees
def test_tied_weights(device: str) -> Any:
    m = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    m[1].weight = m[0].weight
    m.to(device)
    s = m.state_dict()
    o = m(torch.tensor([1, 2]).to(device))
    o.sum().backward()
    m2 = copy.deepcopy(m)
    m.half().float()
    return (
        o,
        m[0].weight.grad,
        m[0].weight is m[1].weight,
        m2[0].weight is m2[1].weight,
        len(list(m.parameters())),
        sorted(s),
    )


@agrees
def test_state_dicts(device: str) -> Any:
    m = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(device)
    n = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(device)
    n.load_state_dict(m.state_dict())
    k = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    k.load_state_dict(m.state_dict())
    q = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(device)
    q.load_state_dict({a: b.cpu() for a, b in m.state_dict().items()}, assign=False)
    return (
        n.state_dict(),
        k.state_dict(),
        q.state_dict(),
        error_of(lambda: n.load_state_dict({"x": torch.ones(1)})),
    )


@agrees
def test_assigned_state_dict(device: str) -> Any:
    m = nn.Linear(3, 4).to(device)
    with torch.device("meta"):
        n = nn.Linear(3, 4)
    n.load_state_dict(m.state_dict(), assign=True)
    return (n(randn(device, 2, 3)), n.weight.requires_grad, isinstance(n.weight, nn.Parameter))


@agrees
def test_buffers(device: str) -> Any:

    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("b", torch.zeros(3))
            self.register_buffer("c", torch.ones(2), persistent=False)
            self.register_parameter("n", None)
            self.p = nn.Parameter(torch.ones(3))

        def forward(self, x):
            self.b += x.detach().mean(0)
            return x * self.b * self.p

    m = M().to(device)
    m(randn(device, 4, 3))
    m(randn(device, 4, 3)).sum().backward()
    return (m.state_dict(), m.p.grad, m.c.device.type == device)


@agrees
def test_containers(device: str) -> Any:
    m = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.ModuleList([nn.Linear(3, 3), nn.Identity()])}).to(device)
    p = nn.ParameterList([torch.ones(2), torch.zeros(3)]).to(device)
    q = nn.ParameterDict({"x": torch.ones(1)}).to(device)
    return [x.device.type == device for x in (*m.parameters(), *p, *q.values())]


@agrees
def test_clipping(device: str) -> Any:
    m = nn.Linear(4, 3).to(device)
    (m(randn(device, 5, 4)) * 10).pow(2).sum().backward()
    n = nn.utils.clip_grad_norm_(m.parameters(), 1.0)
    r = [n, grads(m)]
    nn.utils.clip_grad_value_(m.parameters(), 0.01)
    r.append([g.clone() for g in grads(m)])
    r.append(nn.utils.get_total_norm(grads(m)))
    r.append(nn.utils.clip_grad_norm_(m.parameters(), 1.0, norm_type=float("inf"), foreach=False))
    m.weight.grad.fill_(float("nan"))
    r.append(error_of(lambda: nn.utils.clip_grad_norm_(m.parameters(), 1.0, error_if_nonfinite=True))[0])
    return r


@agrees
def test_fused_batch_norm(device: str) -> Any:
    m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(device).eval()
    f = nn.utils.fuse_conv_bn_eval(m[0], m[1])
    return f(randn(device, 1, 3, 5, 5))


@agrees
def test_skipped_initialisation(device: str) -> Any:
    m = nn.utils.skip_init(nn.Linear, 3, 4, device=device)
    return (m.weight.device.type == device, m.weight.shape)
