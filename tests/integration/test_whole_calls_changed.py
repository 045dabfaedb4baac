"""A module that is changed between calls that are captured as a whole: the next one is captured as it is now."""

from __future__ import annotations

import types

import pytest
import torch
import whole_calls
from whole_calls import Net, assert_equal, call, inputs, warmed

import remora

pytestmark = pytest.mark.usefixtures("connected")


def replace_parameter(net, device):
    net.last.weight = torch.nn.Parameter(torch.linspace(0, 1, 48).reshape(6, 8).to(device))


def take_other_data(net, device):
    net.last.weight.data = torch.linspace(0, 1, 48).reshape(6, 8).to(device)


def write_parameter(net, device):
    with torch.no_grad():
        net.last.weight.mul_(3)


def swap_parameters(net, device):
    net.first.weight, net.last.weight = (
        torch.nn.Parameter(net.last.weight.t().contiguous().detach()),
        torch.nn.Parameter(net.first.weight.t().contiguous().detach()),
    )


def tie_parameters(net, device):
    net.last.bias = torch.nn.Parameter(torch.ones(6).to(device))
    net.first.bias = torch.nn.Parameter(net.last.bias.new_ones(8))


def drop_bias(net, device):
    net.last.bias = None


def freeze(net, device):
    net.requires_grad_(False)


def replace_module(net, device):
    torch.manual_seed(9)
    net.last = torch.nn.Linear(8, 6).to(device)


def replace_by_another_kind(net, device):
    net.norm = torch.nn.Identity()


def train(net, device):
    net.train()
    net.drop.p = 0.0


def hook(net, device):
    net.norm.register_forward_hook(lambda module, args, out: out + 2)


def hook_before(net, device):
    net.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))


def other_scale(net, device):
    net.scale = 7.0


def other_list(net, device):
    net.sizes[1] = 5


def other_class_attribute(net, device):
    net.__class__ = type("Other", (Net,), {"offset": 5.0})


def own_method(net, device):
    net.shift = lambda x: x - 4


def own_forward(net, device):
    forward = net.forward
    net.forward = lambda *args, **kwargs: tuple(out * 2 for out in forward(*args, **kwargs))


CHANGES = [
    replace_parameter,
    take_other_data,
    write_parameter,
    swap_parameters,
    tie_parameters,
    drop_bias,
    freeze,
    replace_module,
    replace_by_another_kind,
    train,
    hook,
    hook_before,
    other_scale,
    other_list,
    other_class_attribute,
    own_method,
    own_forward,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_module_is_captured_as_it_is(change):
    local, there = warmed()
    change(local, "cpu")
    change(there, "remora")
    assert_equal(local, there)


class Below(torch.nn.Module):
    """A module that nothing writes to while it is called: its guards may take a short way."""

    gain = 2.0

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.weight = torch.nn.Parameter(torch.randn(6, 6))
        self.bends = [0.5]
        self.kind = types.SimpleNamespace(shift=1.0)

    def forward(self, x):
        return x @ self.weight * self.gain * self.bends[0] + self.kind.shift


class OtherBelow(Below):
    def forward(self, x):
        return x - self.weight


class Above(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.below = torch.nn.ModuleList([Below(), Below()])

    def forward(self, x):
        for below in self.below:
            x = below(x)
        return x.relu(), x.t()


def list_below(net, device):
    net.below[1].bends[0] = 0.75


def object_below(net, device):
    net.below[1].kind.shift = 2.0


def class_of_one_below(net, device):
    net.below[0].__class__ = OtherBelow


def data_below(net, device):
    net.below[1].weight.data = torch.eye(6).to(device)


def attribute_below(net, device):
    net.below[0].gain = 1.0


CHANGES_BELOW = [list_below, object_below, class_of_one_below, data_below, attribute_below]


@pytest.mark.parametrize("change", CHANGES_BELOW)
def test_a_change_of_what_is_never_written_to(change):
    local, there = warmed(Above)
    assert_equal(local, there, inputs(6))
    change(local, "cpu")
    change(there, "remora")
    assert_equal(local, there, inputs(6))


def test_a_changed_attribute_of_a_class_below(monkeypatch):
    local, there = warmed(Above)
    monkeypatch.setattr(Below, "gain", 3.0)
    assert_equal(local, there, inputs(6))


@pytest.mark.parametrize("other", [None, "weights", torch.ones(6, 6, dtype=torch.float64)])
def test_a_parameter_that_is_none_any_more(other):
    local, there = warmed(Above)
    x = inputs(6)
    for net, device in ((local, "cpu"), (there, "remora")):
        weight = net.below[1].weight
        del net.below[1].weight
        with pytest.raises(AttributeError, match="weight"):
            call(net, device, x)
        net.below[1].weight = other
        with pytest.raises((TypeError, RuntimeError)):
            call(net, device, x)
        del net.below[1].weight
        net.below[1].weight = weight
    assert_equal(local, there, x)


def test_a_changed_method_of_the_class(monkeypatch):
    local, there = warmed()
    monkeypatch.setattr(Net, "shift", lambda self, x: x * 3)
    assert_equal(local, there)


def test_a_changed_function_of_pytorch(monkeypatch):
    local, there = warmed()
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: x @ self.weight.t())
    assert_equal(local, there)


def test_a_changed_function_below_a_module(monkeypatch):
    local, there = warmed()
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, weight, bias=None: x @ weight.t())
    assert_equal(local, there)


def test_a_method_that_hides_another(monkeypatch):
    class Below(Net):
        pass

    local, there = warmed(Below)
    monkeypatch.setattr(Below, "shift", lambda self, x: x * 3, raising=False)
    assert_equal(local, there)


def test_a_changed_global(monkeypatch):
    local, there = warmed()
    monkeypatch.setattr(whole_calls, "SCALE", 3.0)
    assert_equal(local, there)


def test_a_global_hook():
    local, there = warmed()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    try:
        before = remora.stats()
        assert_equal(local, there)
        assert (remora.stats() - before).whole_calls == 0
    finally:
        handle.remove()
