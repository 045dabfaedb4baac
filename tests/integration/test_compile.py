"""torch.compile in a program that uses remora: equal results, no warning, and CPU functions still compile."""

from __future__ import annotations

import collections
import threading
import warnings

import pytest
import torch
from warm_python import run_program

import remora

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of PyTorch's own modules, about each other
    import torch._inductor.compile_fx

pytestmark = pytest.mark.usefixtures("connected")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Linear(6, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.last = torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))


class Backend:
    """A user's own backend: counts the graphs that it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, examples):
        self.graphs += 1
        return graph.forward


MODES = {
    "plain": {},
    "reduce-overhead": {"mode": "reduce-overhead"},
    "max-autotune": {"mode": "max-autotune"},
    "max-autotune-no-cudagraphs": {"mode": "max-autotune-no-cudagraphs"},
    "fullgraph": {"fullgraph": True},
    "dynamic": {"dynamic": True},
    "static": {"dynamic": False},
    "eager": {"backend": "eager"},
    "aot_eager": {"backend": "aot_eager", "fullgraph": True},
    "options": {"options": {"epilogue_fusion": True}},
    "own backend": {"backend": Backend(), "fullgraph": True},
}


def compiled_function(net, options):
    return torch.compile(net.forward, **options)


def compiled_module(net, options):
    return torch.compile(net, **options)


def compiled_in_place(net, options):
    net.compile(**options)
    return net


def compiled_decorator(net, options):
    @torch.compile(**options)
    def run(x):
        return net(x)

    return run


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", [compiled_function, compiled_module, compiled_in_place, compiled_decorator])
def test_every_mode_gives_what_local_gives(mode, way):
    x = torch.arange(24.0).reshape(4, 6) / 7
    expected = Net()(x)
    run = way(Net().to("remora"), MODES[mode])
    for batch in (4, 4, 3):
        out = run(x[:batch].to("remora"))
        assert out.device.type == "remora"
        assert torch.equal(out.cpu(), expected[:batch])


def test_each_call_is_counted_and_costs_no_round_trip():
    net = torch.compile(Net().to("remora"))
    x = torch.ones(2, 6).to("remora")
    net(x)
    before = remora.stats()
    for _ in range(5):
        net(x)
    spent = remora.stats() - before
    assert (spent.eager_frames, spent.round_trips) == (5, 0)


def test_a_training_step_is_bit_equal():
    def losses(device):
        net = Net().to(device)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)

        @torch.compile(fullgraph=True)
        def loss_of(x, y):
            return torch.nn.functional.mse_loss(net(x), y)

        update = torch.compile(optimizer.step, fullgraph=False)
        x, y = torch.linspace(-1, 1, 24).reshape(4, 6).to(device), torch.ones(4, 2).to(device)
        found = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = loss_of(x, y) if device == "remora" else loss_of._torchdynamo_orig_callable(x, y)
            loss.backward()
            update() if device == "remora" else optimizer.step()
            found.append(loss.item())
        return found

    assert losses("remora") == losses("cpu")


def test_the_same_function_still_compiles_for_cpu_tensors():
    backend = Backend()

    @torch.compile(backend=backend)
    def double(x):
        return x * 2 + 1

    x = torch.arange(3.0)
    for _ in range(2):
        assert torch.equal(double(x.to("remora")).cpu(), x * 2 + 1)
        assert torch.equal(double(x), x * 2 + 1)
    assert backend.graphs == 1


@torch.no_grad()
def test_a_module_that_moves_after_it_was_compiled():
    backend = Backend()
    x = torch.ones(2, 6)
    net = torch.compile(Net(), backend=backend)
    expected = net(x)
    assert backend.graphs == 1
    net.to("remora")
    assert torch.equal(net(x.to("remora")).cpu(), expected)
    net.to("cpu")
    assert torch.equal(net(x), expected)


# ways by which a remora tensor reaches a frame that does not show it

WEIGHT = None


class Holder:
    def __init__(self, inside):
        self.inside = inside

    def weight(self):
        return self.inside[0].inside["w"]


def reads_a_global(x):
    return hidden_global(x)


def hidden_global(x):
    return WEIGHT * 2


def makes_its_own(x):
    return torch.ones(3, device="remora") * 2


def makes_by_a_name_of_its_caller(x, where="remora"):
    return torch.ones(3, device=where) * 2


def moves_its_argument(x):
    return (x * 2).to("remora") + 1


def through_an_object(x):
    return HOLDER.weight() * 2


HOLDER = None


@pytest.mark.parametrize(
    "function",
    [reads_a_global, makes_its_own, makes_by_a_name_of_its_caller, moves_its_argument, through_an_object],
)
@pytest.mark.parametrize("fullgraph", [False, True])
def test_remora_tensors_that_the_frame_does_not_show(function, fullgraph):
    global WEIGHT, HOLDER
    WEIGHT = torch.arange(3.0).to("remora")
    HOLDER = Holder([Holder({"w": WEIGHT})])
    compiled = torch.compile(function, backend="eager", fullgraph=fullgraph)
    expected = function(torch.arange(3.0)).cpu()
    for _ in range(3):
        got = compiled(torch.arange(3.0))
        assert got.device.type == "remora"
        assert torch.equal(got.cpu(), expected)
    backend = Backend()  # Dynamo is in order after a trace that was given up
    assert torch.equal(torch.compile(hidden_cpu, backend=backend, fullgraph=True)(expected), expected + 1)
    assert backend.graphs == 1


def hidden_cpu(x):
    return x + 1


def test_a_graph_break_in_between():
    seen = []

    @torch.compile(backend="eager")
    def run(x):
        y = x * 2
        seen.append(float(y.sum()))
        torch._dynamo.graph_break()
        return y.to("remora") + 1

    assert torch.equal(run(torch.ones(2)).cpu(), torch.full((2,), 3.0))
    assert torch.equal(run(torch.ones(2).to("remora")).cpu(), torch.full((2,), 3.0))
    assert seen == [4.0, 4.0]


def test_many_shapes_never_reach_the_recompile_limit():
    run = torch.compile(lambda x: x.sum() * 2, fullgraph=True)
    for n in range(1, 3 * torch._dynamo.config.recompile_limit):
        assert run(torch.ones(n).to("remora")).item() == 2 * n
    run = torch.compile(moves_its_argument, backend="eager", fullgraph=True)
    for n in range(1, 3 * torch._dynamo.config.recompile_limit):
        assert run(torch.ones(n)).sum().item() == 3 * n


def test_nested_compiles_and_stances():
    inner = torch.compile(lambda x: x * 2, backend="eager")

    @torch.compile(backend="aot_eager")
    def outer(x):
        return inner(x) + 1

    x = torch.ones(3).to("remora")
    for stance in ("default", "force_eager", "eager_on_recompile", "fail_on_recompile", "eager_then_compile"):
        with torch.compiler.set_stance(stance):
            for _ in range(2):
                assert torch.equal(outer(x).cpu(), torch.full((3,), 3.0))
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="recompile"):
        outer(torch.ones(3))


def test_a_model_output_and_a_namedtuple_come_back_whole():
    Pair = collections.namedtuple("Pair", "a b")

    @torch.compile(fullgraph=True)
    def run(pair):
        return Pair(pair.b, pair.a * 2)

    x = torch.arange(2.0).to("remora")
    out = run(Pair(x, x + 1))
    assert isinstance(out, Pair)
    assert [out.a.tolist(), out.b.tolist()] == [[1.0, 2.0], [0.0, 2.0]]


def test_torch_cond_takes_the_branch_of_the_data():
    def branch(x):
        return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y - 1, (x,))

    for sign in (1.0, -1.0):
        x = torch.full((3,), sign)
        assert torch.equal(branch(x.to("remora")).cpu(), branch(x))
        assert torch.equal(torch.compile(branch, fullgraph=True)(x.to("remora")).cpu(), branch(x))


@pytest.mark.parametrize("forced", [False, True])
def test_generate_that_compiles_by_itself(forced):
    """With a static cache, transformers compiles the model's forward on devices that it knows."""
    from transformers import CompileConfig

    from remora.bench import models

    make = lambda: models.llama(layers=2, width=32, heads=4, kv_heads=2, inner=64, vocabulary=128)  # noqa: E731
    ids = models.prompt(9, batch=1, vocabulary=128)
    config = CompileConfig()
    config._compile_all_devices = forced
    options = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": "static"}
    expected = make().generate(ids, **options, disable_compile=True)
    before = remora.stats()
    got = make().to("remora").generate(ids.to("remora"), **options, compile_config=config)
    assert torch.equal(got.cpu(), expected)
    assert ((remora.stats() - before).eager_frames > 0) == forced


def test_looking_for_tensors_ends_soon():
    """Objects that hold each other, and more of them than anybody can look at."""
    ring = [Holder(None) for _ in range(200)]
    for holder in ring:
        holder.inside = dict.fromkeys(range(200), ring)
    backend = Backend()

    @torch.compile(backend=backend)
    def run(x, held):
        return x + len(held)

    assert torch.equal(run(torch.ones(2), ring), torch.full((2,), 201.0))
    assert backend.graphs == 1
    assert torch.equal(run(torch.ones(2).to("remora"), ring).cpu(), torch.full((2,), 201.0))


class Lazy:
    """What many libraries have: an object that works, or fails, when it is looked at."""

    def __getattr__(self, name):
        raise RuntimeError(f"{name}: looked at too early")


def test_looking_for_tensors_runs_no_code_of_the_objects():
    @torch.compile(backend="eager")
    def run(x, lazy):
        return x * 2

    assert torch.equal(run(torch.ones(2).to("remora"), Lazy()).cpu(), torch.full((2,), 2.0))
    x = torch.ones(2)

    @torch.compile(backend="eager")
    def later(lazy):
        return torch.ones(2, device="remora")

    assert torch.equal(later(Lazy()).cpu(), x)


def test_threads_compile_for_both_devices():
    run = torch.compile(lambda x: (x * 2 + 1).relu(), backend="aot_eager", fullgraph=True)
    wrong = []

    def work(device):
        for n in range(1, 6):
            if not torch.equal(run(torch.ones(n).to(device)).cpu(), torch.full((n,), 3.0)):
                wrong.append((device, n))

    threads = [threading.Thread(target=work, args=(device,)) for device in ("cpu", "remora") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not:UserWarning"
)  # PyTorch hides it
def test_a_backward_pass_that_autograd_compiles():
    def gradients(device, compiled):
        net = Net().to(device)
        loss = net(torch.linspace(-1, 1, 24).reshape(4, 6).to(device)).square().sum()
        if compiled:
            with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
                loss.backward()
        else:
            loss.backward()
        return [parameter.grad.cpu() for parameter in net.parameters()]

    for got, expected in zip(gradients("remora", True), gradients("cpu", False), strict=True):
        assert torch.equal(got, expected)


AS_CUDA = """
import torch, remora
remora.as_cuda()

@torch.compile(fullgraph=True)
def multiply(x):
    return x @ torch.full((3, 3), 2.0, device="cuda")

@torch.compile
def move(x):
    return x.cuda() + 1

model = torch.compile(torch.nn.Linear(3, 3).cuda(), mode="reduce-overhead")
for _ in range(2):
    assert multiply(torch.ones(2, 3).cuda()).cpu().tolist() == [[6.0] * 3] * 2
    assert move(torch.ones(2)).cpu().tolist() == [2.0, 2.0]
    assert model(torch.ones(2, 3).cuda()).shape == (2, 3)
assert remora.stats().eager_frames == 6
"""


def test_compiled_code_that_says_cuda(executor):
    done = run_program(AS_CUDA, timeout_s=100, warnings_are_errors=False, REMORA_URL=executor.url)
    assert done.returncode == 0, done.stderr
