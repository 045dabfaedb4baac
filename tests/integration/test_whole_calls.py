"""Calls that are captured as a whole: equal results whatever is changed between them, and op by op where it must be."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import types
import weakref

import pytest
import torch

import remora
from remora.device import routes

pytestmark = pytest.mark.usefixtures("connected")

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


def test_a_whole_call_gives_what_local_gives():
    local, there = warmed()
    assert_equal(local, there)
    before = remora.stats()
    assert_equal(local, there)
    spent = remora.stats() - before
    assert spent.whole_calls == 3
    assert local.calls == there.calls == CALLS + 14


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
    monkeypatch.setitem(globals(), "SCALE", 3.0)
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


@pytest.mark.parametrize("batch", [1, 2, 3, 9, 64])
def test_another_size(batch):
    local, there = warmed()
    assert_equal(local, there, inputs(batch))


class Products(torch.nn.Module):
    """The products of attention, and a question that only an export answers with yes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.linear = torch.nn.Linear(6, 6)

    def forward(self, x):
        h = self.linear(x)
        last = torch.nn.functional.scaled_dot_product_attention(h[:, None, -1:], x[:, None], x[:, None])
        scores = last[:, 0] @ x.transpose(-1, -2)
        return last, scores.sum() if torch.compiler.is_exporting() else scores


def test_products_of_a_length_that_changes():
    local, there = Products().eval(), Products().eval().to("remora")
    with torch.no_grad():
        for length in range(3, 3 + CALLS):
            there(torch.zeros(2, length, 6, device="remora"))
    assert remora.wait_warm(100)
    before = remora.stats().whole_calls
    for length in (5, 30, 31, 200):
        assert_equal(local, there, torch.randn(2, length, 6))
    route = there.__dict__["_compiled_call_impl"]
    assert remora.stats().whole_calls - before >= 8, route.reasons
    assert route.traces == 1


def test_other_arguments():
    local, there = warmed()
    assert_equal(local, there, inputs(), inputs(seed=4))
    assert_equal(local, there, double=True)
    assert_equal(local, there, inputs().double().float())


def test_another_layout_of_an_argument():
    local, there = warmed()
    assert_equal(local, there, torch.randn(6, 4).t())
    assert_equal(local, there, torch.randn(4, 12)[:, ::2])


def test_the_same_tensor_twice():
    local, there = warmed(Net, inputs(), inputs(seed=2))
    x, y = inputs(), inputs().to("remora")
    assert_equal(local, there, inputs(seed=2), inputs())
    with torch.no_grad():
        for one, other in zip(there(y, y), local(x, x), strict=True):
            assert torch.equal(one.cpu(), other)


def test_gradients_when_they_are_recorded():
    local, there = warmed()
    for net, device in ((local, "cpu"), (there, "remora")):
        net(inputs().to(device))[0].sum().backward()
    for one, other in zip(there.parameters(), local.parameters(), strict=True):
        assert torch.equal(one.grad.cpu(), other.grad)


def test_inference_mode():
    local, there = warmed()
    with torch.inference_mode():
        for _ in range(3):
            for one, other in zip(there(inputs().to("remora")), local(inputs()), strict=True):
                assert torch.equal(one.cpu(), other)
                assert one.is_inference()


def test_the_default_dtype():
    class Made(torch.nn.Module):
        def forward(self, x):
            return (x + torch.full((6,), 0.1, device=x.device),)

    local, there = warmed(Made)
    torch.set_default_dtype(torch.float64)
    try:
        assert_equal(local, there, inputs())
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal(local, there, inputs())


def test_autocast():
    local, there = warmed()
    with torch.autocast("remora", dtype=torch.bfloat16):
        got = call(there, "remora", inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = call(local, "cpu", inputs())
    assert all(torch.equal(one[0], other[0]) for one, other in zip(got, expected, strict=True))


def test_another_thread():
    local, there = warmed()
    failures = []

    def run():
        try:
            assert_equal(local, there)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_another_session(executor):
    local, there = warmed()
    there.to("cpu")
    remora.disconnect()
    remora.connect(executor.url)
    there.to("remora")
    assert_equal(local, there)


class Branches(torch.nn.Module):
    def forward(self, x):
        return (x + 1 if x.sum() > 0 else x - 1,)


def deep():
    torch.manual_seed(4)
    return torch.nn.Sequential(
        *(layer for _ in range(24) for layer in (torch.nn.Linear(6, 6), torch.nn.ReLU()))
    )


def test_a_second_model_of_the_same_form():
    first, second = (deep().eval().to("remora") for _ in range(2))
    x = inputs()
    expected = call_alone(deep().eval(), x, "cpu")
    for net in (first, second):
        whole_calls = []
        for calls in (12 * routes.LOOK_EVERY, routes.ENOUGH, 3, 1):
            before = remora.stats().whole_calls
            for _ in range(calls):
                assert torch.equal(call_alone(net, x, "remora"), expected)
            assert remora.wait_warm(100)
            whole_calls.append(remora.stats().whole_calls - before)
        assert whole_calls[-1] == 1, whole_calls


def call_alone(net, x, device):
    with torch.no_grad():
        return net(x.to(device)).cpu()


class Thin(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.linear = torch.nn.Linear(6, 6)

    def forward(self, x):
        return (self.linear(x).tanh(),)


def test_a_long_loop_that_is_waited_for_once():
    """Each turn starts at a place of its own, and all of them come again in the next loop."""
    turns = 200

    def looped(net, device):
        with torch.no_grad():
            x = inputs().to(device)
            for _ in range(turns):
                (x,) = net(x)
            return x.cpu()

    local, there = warmed(Thin)
    expected = looped(local, "cpu")
    for _ in range(4):  # the first ones learn the places
        assert torch.equal(looped(there, "remora"), expected)
    before = remora.stats().whole_calls
    assert torch.equal(looped(there, "remora"), expected)
    assert remora.stats().whole_calls - before >= turns - 5  # less where a segment was cut elsewhere


def test_control_flow_by_data_stays_as_it_is():
    local, there = Branches(), Branches().to("remora")
    with torch.no_grad():
        for number in range(2 * CALLS):
            x = inputs(seed=number)
            assert torch.equal(there(x.to("remora"))[0].cpu(), local(x)[0])
    for _ in range(10):  # each may call for another try
        assert remora.wait_warm(100)
        assert_equal(local, there, -inputs().abs())
        if remora.stats().capture_route == "lazy":
            return
    raise AssertionError(remora.stats().capture_route)


class Writes(torch.nn.Module):
    """Writes its inputs and its state, draws random numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(6))
        self.calls = 0

    def forward(self, x, n):
        self.total.add_(x.sum(0))
        n.add_(1)
        x[:, 0].mul_(2)
        self.calls += 1
        return torch.rand(3, device=x.device), x + n, self.total * 1


class Remembers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.shape[0])
        return (x * len(self.seen),)


def test_state_that_grows_stays_as_it_is():
    local, there = Remembers(), Remembers().to("remora")
    for _ in range(2 * CALLS):
        assert_equal(local, there)
        remora.wait_warm(100)
    assert local.seen == there.seen


def test_writes_and_random_numbers():
    def run(device):
        torch.manual_seed(5)
        net = Writes().to(device)
        x, n = inputs().to(device), torch.arange(6).to(device)
        found = []
        with torch.no_grad():
            for number in range(CALLS + 12):
                found += [out.cpu() for out in net(x, n)]
                found.append(torch.tensor(n.tolist()))
                if number >= CALLS:
                    remora.wait_warm(100)
        route = remora.stats().capture_route
        return [*found, x.cpu()], net.calls, x._version, route

    there, local = run("remora"), run("cpu")
    assert all(torch.equal(one, other) for one, other in zip(there[0], local[0], strict=True))
    assert there[1:3] == local[1:3]
    assert there[3] == "guarded"


def test_a_failure_names_the_module():
    class Picks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(5, 3)

        def forward(self, x):
            return (self.table(x) * 2,)

    _, there = warmed(Picks, torch.arange(4))
    before = remora.stats()
    with pytest.raises(remora.errors.ExecutorError, match=r"table \(Embedding\)"):
        call(there, "remora", torch.full((4,), 77))
    assert (remora.stats() - before).whole_calls == 1


def test_copies_and_saved_modules_have_no_route():
    _, there = warmed()
    assert copy.deepcopy(there)._compiled_call_impl is None
    assert pickle.loads(pickle.dumps(there))._compiled_call_impl is None


def test_a_module_that_is_dropped_is_freed():
    _, there = warmed()
    gone = weakref.ref(there)
    gc.collect()  # what the trace has left
    gc.disable()
    try:
        del there
        assert gone() is None
    finally:
        gc.enable()


def test_lazy_by_the_environment(monkeypatch):
    monkeypatch.setenv("REMORA_CAPTURE", "lazy")
    net = Net().eval().to("remora")
    for _ in range(CALLS):
        call(net, "remora", inputs())
    assert net._compiled_call_impl is None


def test_the_probe_of_the_patch_holds():
    warmed()
    assert {name: held for name, held, _ in remora.probes()}["guards-of-whole-calls"]


def test_a_call_that_is_too_long_for_a_segment_is_cut(monkeypatch):
    monkeypatch.setattr("remora.capture.calls.MAX_JOINED_ROWS", 200)

    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(7)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(100))

        def forward(self, x):
            seen = x
            for layer in self.layers:
                x = layer(x).tanh() + seen
            return x, x.t()

    def behind_rows(net, device, *tensors):
        """Rows of the open segment come before the call, and it reads one."""
        return call(net, device, *[(tensor.to(device) * 2).abs() for tensor in tensors])

    local, there = warmed(Deep)
    for _ in range(CALLS):
        behind_rows(there, "remora", inputs())
    for seed in range(4):
        before = remora.stats()
        (found, _), (expected, _) = (
            behind_rows(net, d, inputs(seed=seed)) for net, d in ((there, "remora"), (local, "cpu"))
        )
        assert torch.equal(found[0], expected[0])
    spent = remora.stats() - before
    assert spent.whole_calls == 1
    assert spent.segments == 2
    assert_equal(local, there)


class Overwrites(torch.nn.Module):
    """Makes nothing, and gives its input back."""

    def forward(self, x):
        return (x.mul_(2).add_(1),)


def test_a_call_that_makes_nothing_new():
    local, there = Overwrites().eval(), Overwrites().eval().to("remora")

    def turn(net, device, seed):
        with torch.no_grad():
            x = inputs(seed=seed).to(device) * 3  # a row of the open segment
            (y,) = net(x)
            return (y + x).cpu()

    for seed in range(2 * CALLS):
        if seed in (CALLS, CALLS + 2):
            assert remora.wait_warm(100)
        assert torch.equal(turn(there, "remora", seed), turn(local, "cpu", seed))


def test_a_call_of_no_rows_cuts_nothing():
    there = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity()).eval().to("remora")
    spent = None
    for seed in range(2 * CALLS):
        if seed in (CALLS, CALLS + 2):
            assert remora.wait_warm(100)
        before = remora.stats()
        with torch.no_grad():
            x = inputs(seed=seed).to("remora")
            for _ in range(5):
                x = there(x * 2)
            assert torch.equal(x.cpu(), inputs(seed=seed) * 32)
        spent = remora.stats() - before
    assert spent.segments <= 2
