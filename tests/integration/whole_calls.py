"""What tests of calls that are captured as a whole share: a module, its calls here and there, their comparison."""

from __future__ import annotations

import torch

import remora
from remora.device import routes

SCALE = 2.0
CALLS = routes.ENOUGH + 2  # traced meanwhile


class Net(torch.nn.Module):
    """Has something of each kind that a call may depend on."""

    offset = 0.25

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Linear(6, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.drop = torch.nn.Dropout(0.5)
        self.last = torch.nn.Linear(8, 6)
        self.scale = 1.5
        self.sizes = [2, 3]
        self.calls = 0

    def shift(self, x):
        return x + 1

    def forward(self, x, y=None, double=False):
        self.calls += 1
        h = self.drop(self.norm(self.first(x))).relu() * self.scale * SCALE + self.offset
        h = self.last(self.shift(h)) + torch.ones(6, device=x.device)
        if y is not None:
            h = h + y.cumsum(0)
        if double:
            h = h * 2
        return h[:, : self.sizes[1]], h.t()


def inputs(batch=4, seed=0):
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(seed))


def call(net, device, *tensors, **options):
    with torch.no_grad():
        outs = net(*(tensor.to(device) for tensor in tensors), **options)
        return [(out.cpu(), out.stride(), out.shape, out.requires_grad) for out in outs]


def warmed(make=Net, *tensors, **options):
    """A module here, and one there whose calls are captured as a whole."""
    local, there = make().eval(), make().eval().to("remora")
    tensors = tensors or (inputs(),)
    for calls in (CALLS, 4, 4):  # numbers that change are seen to change by a second trace
        for _ in range(calls):
            call(there, "remora", *tensors, **options)
            call(local, "cpu", *tensors, **options)
        assert remora.wait_warm(100)
    route = there.__dict__["_compiled_call_impl"]
    assert remora.stats().capture_route == "guarded", route.reasons + [whole.reason for whole in route.wholes]
    return local, there


def assert_equal(local, there, *tensors, **options):
    tensors = tensors or (inputs(seed=1),)
    for _ in range(3):
        expected = call(local, "cpu", *tensors, **options)
        for one, other in zip(call(there, "remora", *tensors, **options), expected, strict=True):
            assert torch.equal(one[0], other[0])
            assert one[1:] == other[1:]
