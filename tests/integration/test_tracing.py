"""Tools that trace, fake or watch a program, with remora tensors in it."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import remora
from remora.errors import NotSupported

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of PyTorch's own modules, about each other
    from torch._higher_order_ops.associative_scan import associative_scan
    from torch._higher_order_ops.map import map as higher_order_map
    from torch._higher_order_ops.scan import scan
    from torch._higher_order_ops.while_loop import while_loop
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning",
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:The .grad attribute of a Tensor that is not:UserWarning",  # which PyTorch means to hide
    "ignore:flex_attention called without:UserWarning",
)
X = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture
def pair(connected):
    """A module here, and the same one there."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)
    )
    return net, copy.deepcopy(net).to("remora")


# -- export and graphs


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("decompose", [False, True])
def test_an_exported_program_runs_on_remora(pair, dynamic, decompose):
    local, remote = pair
    shapes = {"input": {0: torch.export.Dim("batch")}} if dynamic else None
    program = torch.export.export(remote, (X.to("remora"),), dynamic_shapes=shapes)
    if decompose:
        program = program.run_decompositions()
    x = X[:2] if dynamic else X
    for scale in (1, 2):
        assert torch.equal(program.module()(x.to("remora") * scale).cpu(), local(x * scale))


def test_a_saved_export_is_loaded_to_where_it_was(pair):
    local, remote = pair
    file = io.BytesIO()
    torch.export.save(torch.export.export(remote, (X.to("remora"),)), file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(X.to("remora")).cpu(), local(X))


def test_a_strict_export_is_refused_by_name(pair):
    with pytest.raises(NotSupported, match="strict=False"):
        torch.export.export(pair[1], (X.to("remora"),), strict=True)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(pair, mode):
    local, remote = pair
    x = X.to("remora")
    graph = make_fx(remote, tracing_mode=mode, _allow_non_fake_inputs=mode != "real")(x)
    for scale in (1, 2):  # the graph holds the ops, not what they gave
        assert torch.equal(graph(x * scale).cpu(), local(X * scale))


def test_make_fx_of_gradients(pair):
    def gradients(net):
        return lambda x: torch.autograd.grad(net(x).sum(), list(net.parameters()))

    local, remote = pair
    x = X.to("remora")
    graph = make_fx(gradients(remote))(x)
    for scale in (1, 2):
        for got, expected in zip(graph(x * scale), gradients(local)(X * scale), strict=True):
            assert torch.equal(got.cpu(), expected)


def test_fx_and_jit(pair):
    local, remote = pair
    x = X.to("remora")
    for traced in (torch.fx.symbolic_trace(remote), torch.jit.trace(remote, (x,)), torch.jit.script(remote)):
        for _ in range(3):  # a profiling executor changes its graph after some runs
            assert torch.equal(traced(x * 2).cpu(), local(X * 2))


def test_a_scripted_module_moves_with_its_ties(connected):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).eval()
    net[1].weight = net[0].weight
    x = X.clone()
    expected = net(x)
    scripted = torch.jit.script(net).to("remora")
    assert all(t.device.type == "remora" for t in scripted.state_dict().values())
    assert len(list(scripted.parameters())) == 5  # six, of which two are one
    assert torch.equal(scripted(x.to("remora")).cpu(), expected)
    scripted.train()
    scripted(x.to("remora")).sum().backward()
    scripted.to("cpu").eval()
    assert all(t.device.type == "cpu" for t in scripted.state_dict().values())
    assert all(p.grad is not None and p.grad.device.type == "cpu" for p in scripted.parameters())


def test_a_scripted_module_is_loaded_to_remora_and_saved_from_the_cpu(pair):
    local, _ = pair
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(local), file)
    file.seek(0)
    loaded = torch.jit.load(file, map_location="remora")
    assert torch.equal(loaded(X.to("remora")).cpu(), local(X))
    for module in (loaded, torch.jit.trace(pair[1], (X.to("remora"),))):
        with pytest.raises(NotSupported, match="cpu"):
            torch.jit.save(module, io.BytesIO())
    again = io.BytesIO()
    torch.jit.save(loaded.to("cpu"), again)
    again.seek(0)
    assert torch.equal(torch.jit.load(again)(X), local(X))


# -- fake tensors


@pytest.mark.parametrize("grad", [False, True])
def test_fake_tensors_of_the_device_send_nothing(pair, grad):
    _, remote = pair
    before = remora.stats()
    with FakeTensorMode() as mode, torch.set_grad_enabled(grad):
        q = torch.ones(1, 2, 3, 4, device="remora")
        outs = [torch.nn.Linear(4, 5, device="remora")(q), scaled_dot_product_attention(q, q, q)]
        weight = mode.from_tensor(remote[0].weight)
    with torch.set_grad_enabled(grad):
        outs.append(linear(q, weight))  # without the mode
    assert [tuple(out.shape) for out in outs] == [(1, 2, 3, 5), (1, 2, 3, 4), (1, 2, 3, 8)]
    for out in outs:
        assert type(out) is FakeTensor
        assert out.device == torch.device("remora:0")
    assert (remora.stats() - before).ops == 0


def test_a_fake_tensor_and_a_remora_tensor_do_not_mix(pair):
    _, remote = pair
    x = FakeTensorMode().from_tensor(X.to("remora"))
    with pytest.raises(TypeError, match="'FakeTensor' and 'RemoraTensor'"):
        x + remote[0].weight


# -- modes


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_every_op(pair):
    local, remote = pair
    x = X.to("remora")
    with Seen() as seen, torch.no_grad():
        out = remote(x)
    assert seen.ops == ["linear", "relu", "layer_norm", "linear"]  # composites are whole
    assert torch.equal(out.cpu(), local(X))
    with Seen() as there:
        out = remote(x)
    with Seen() as here:
        expected = local(X)
    assert there.ops == here.ops
    assert torch.equal(out.cpu(), expected)
    with Seen() as seen:
        float((torch.ones(3, device="remora") + 1).sum())
        x.cpu()
    assert seen.ops == ["ones", "add", "sum", "_local_scalar_dense", "_to_copy"]


def test_a_dispatch_mode_may_change_the_result(pair):
    class Twice(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {})) * 2

    x = X.to("remora")
    with torch.no_grad(), Twice():
        out = linear(x, x)
    assert torch.equal(out.cpu(), linear(X, X) * 2)


def test_a_function_mode_sees_the_same_as_on_cpu(pair):
    seen = []
    for net, x in zip(pair, (X, X.to("remora")), strict=True):
        with SeenFunctions() as mode:
            (net(x).sum() * 2).item()
        seen.append(mode.names)
    assert seen[0] == seen[1]
    assert seen[0][:2] == ["linear", "relu"]


def test_the_flop_counter_counts_as_on_cpu(pair):
    for grad in (False, True):
        counts = []
        for net, x in zip(pair, (X, X.to("remora")), strict=True):
            with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
                out = net(x)
            counts.append(counter.get_total_flops())
        assert counts == [288, 288]
        assert torch.equal(out.cpu(), pair[0](X))


# -- higher-order operators


def cond(device):
    x = torch.full((3,), -1.0, device=device, requires_grad=True)
    out = torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y.exp(), (x,))
    out.sum().backward()
    return out, x.grad


def loop(device):
    start = torch.tensor(0, device=device), torch.ones(2, device=device)
    return while_loop(lambda i, x: i < 5, lambda i, x: (i + 1, x * 2), start)


def scanned(device):
    rows = torch.arange(6.0, device=device).reshape(3, 2)
    return scan(lambda c, x: (c + x, c * x), torch.ones(2, device=device), rows)


def scanned_associatively(device):
    return (
        associative_scan(lambda a, b: a * b, torch.arange(1.0, 7, device=device), 0, combine_mode="generic"),
    )


def mapped(device):
    rows = torch.arange(6.0, device=device).reshape(3, 2).requires_grad_()
    out = higher_order_map(lambda x: x * x, rows)
    out.sum().backward()
    return out, rows.grad


def flexible(device):
    q = torch.linspace(-1, 1, 256).reshape(1, 2, 16, 8).to(device)
    mask = create_block_mask(lambda b, h, i, j: i >= j, 1, 1, 16, 16, device=device)
    return (
        flex_attention(q, q, q, block_mask=mask),
        flex_attention(q, q, q, score_mod=lambda s, b, h, i, j: s * 2),
    )


@pytest.mark.parametrize("program", [cond, loop, scanned, scanned_associatively, mapped, flexible])
def test_a_higher_order_operator_gives_what_it_gives_on_cpu(connected, program):
    for got, expected in zip(program("remora"), program("cpu"), strict=True):
        assert got.device.type == "remora"
        assert torch.equal(got.cpu(), expected)


def test_compiled_flex_attention_warns_of_nothing(connected):
    torch.nn.attention.flex_attention._WARNINGS_SHOWN.discard("flex_attention_performance")
    q = torch.linspace(-1, 1, 256).reshape(1, 2, 16, 8)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "flex_attention called without", UserWarning)
        out = torch.compile(flex_attention)(*[q.to("remora")] * 3)
    assert torch.equal(out.cpu(), flex_attention(q, q, q))
