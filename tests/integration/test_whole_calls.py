"""Calls that are captured as a whole: equal results at any sizes, places and modes, and op by op where it must be."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from whole_calls import CALLS, Net, assert_equal, call, inputs, warmed

import remora
from remora.device import routes

pytestmark = pytest.mark.usefixtures("connected")


def test_a_whole_call_gives_what_local_gives():
    local, there = warmed()
    assert_equal(local, there)
    before = remora.stats()
    assert_equal(local, there)
    spent = remora.stats() - before
    assert spent.whole_calls == 3
    assert local.calls == there.calls == CALLS + 14


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
