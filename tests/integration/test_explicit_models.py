"""Models over several devices, split by hand and by accelerate: tokens, losses and gradients are those of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from warm_python import run_program

import remora
from remora.bench import models

ZERO, ONE = torch.device("remora", 0), torch.device("remora", 1)


class Halves(nn.Module):
    """Its parts on two devices. `w` is tied, between two modules of the second."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.embed = nn.Embedding(11, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 16))
        self.norm = nn.LayerNorm(16)
        self.inner, self.head = nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.head.weight = self.inner.weight
        self.register_buffer("scale", torch.tensor(0.5))
        for part in (self.embed, self.body):
            part.to(first)
        for part in (self.norm, self.inner, self.head):
            part.to(second)
        self.scale = self.scale.to(second)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        hidden = hidden + self.body(hidden)
        hidden = self.norm(hidden.to(self.second))
        skip = hidden.to(self.first) @ self.body[0].weight.t()
        return self.head(self.inner(hidden)).tanh() * self.scale + skip.mean(-1, keepdim=True).to(self.second)


def _train(first: Any, second: Any, optimizer_type: Any) -> tuple[list[float], list[torch.Tensor]]:
    torch.manual_seed(0)
    model = Halves(first, second)
    ids, target = torch.randint(0, 11, (6, 5)), torch.randn(6, 5, 16)
    optimizer = optimizer_type(model.parameters(), lr=0.05)
    torch.manual_seed(1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(ids.to(first)), target.to(second))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses, [
        item.detach().cpu() for item in (*model.parameters(), *(p.grad for p in model.parameters()))
    ]


@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.AdamW], ids=["SGD", "AdamW"])
def test_a_model_split_by_hand_trains_as_on_the_cpu(both, optimizer_type):
    losses, expected = _train("cpu", "cpu", optimizer_type)
    before = remora.stats()
    found_losses, found = _train("remora:0", "remora:1", optimizer_type)
    assert found_losses == losses
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert (remora.stats() - before).peer_bytes > 4 * 6 * 5 * 16 * 4


def test_backward_on_a_later_device(both):
    x = torch.randn(4, 3)
    expected = x.clone().requires_grad_()
    (expected.sin() * expected).sum().backward()
    there = x.to("remora:1").requires_grad_()
    (there.sin() * there).sum().backward()
    assert there.grad.device == ONE
    assert torch.equal(there.grad.cpu(), expected.grad)
    leaf = x.clone().requires_grad_()  # from the CPU over both devices, and back
    y = leaf.to("remora:0").sin().to("remora:1") * leaf.to("remora:1")
    y.sum().cpu().backward()
    assert torch.equal(leaf.grad, expected.grad)
    z = torch.zeros(4, 3, device="remora:0")
    z.copy_(there.detach().requires_grad_() * 2)
    assert z.device == ZERO


def test_checkpointing_draws_the_same_again_on_each_device(both):
    def grads(device: str) -> torch.Tensor:
        torch.manual_seed(3)
        x = torch.ones(8, device=device).requires_grad_()
        y = torch.utils.checkpoint.checkpoint(
            lambda x: nn.functional.dropout(x * x, 0.5), x, use_reentrant=False
        )
        y.sum().backward()
        return x.grad.cpu()

    assert torch.equal(grads("remora:1"), grads("cpu"))


def test_a_module_moves_between_devices(both):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[1].weight
    x = torch.randn(2, 4)
    with torch.no_grad():
        expected = model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = list(model.parameters())
    for device in ("remora:1", "remora:0", "remora:1"):
        model.to(device)
        assert {p.device for p in model.parameters()} == {torch.device(device)}
        assert model[2].weight is model[1].weight
        assert torch.equal(model(x.to(device)).cpu(), expected)
    assert all(a is b for a, b in zip(parameters, optimizer.param_groups[0]["params"], strict=True))
    assert torch.equal(model.cpu()(x), expected)


def test_recurrent_networks_and_ctc_run_on_a_later_device(both):
    torch.manual_seed(0)
    lstm, x = nn.LSTM(4, 6, 2, bidirectional=True), torch.randn(5, 3, 4)
    with torch.no_grad():
        expected = lstm(x)[0]
        assert torch.equal(lstm.to("remora:1")(x.to("remora:1"))[0].cpu(), expected)
    scores, targets = torch.randn(9, 2, 5).log_softmax(2), torch.randint(1, 5, (2, 3))
    lengths = (torch.tensor([9, 8]), torch.tensor([3, 2]))
    there = scores.to("remora:1").requires_grad_()
    local = scores.clone().requires_grad_()
    loss = nn.functional.ctc_loss(there, targets.to("remora:1"), *lengths)
    assert loss.device == ONE
    wanted = nn.functional.ctc_loss(local, targets, *lengths)
    assert loss.item() == wanted.item()
    loss.backward()
    wanted.backward()
    assert torch.equal(there.grad.cpu(), local.grad)


# -- language models


def _split(model: Any, devices: list[str]) -> Any:
    """The first blocks of a GPT-2 on one device, the others and the head on the next."""
    transformer, last = model.transformer, devices[-1]
    half = len(transformer.h) // 2
    for part in (transformer.wte, transformer.wpe):
        part.to(devices[0])
    for number, block in enumerate(transformer.h):
        device = devices[number >= half]
        block.to(device)
        block.register_forward_pre_hook(_bring(device), with_kwargs=True)
    transformer.ln_f.to(last)
    model.lm_head.weight = nn.Parameter(transformer.wte.weight.detach().to(last), requires_grad=False)
    return model


def _bring(device: str) -> Any:
    def moved(item: Any) -> Any:
        return item.to(device) if isinstance(item, torch.Tensor) else item

    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        return tuple(map(moved, args)), {name: moved(item) for name, item in kwargs.items()}

    return hook


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_gpt2_split_by_hand_writes_the_tokens_of_local(both, sampled):
    def model() -> Any:
        return models.gpt2(layers=4, width=48, vocabulary=128).eval()

    def tokens(model: Any, first: str) -> torch.Tensor:
        torch.manual_seed(6)
        options = {"do_sample": True, "top_k": 20} if sampled else {"do_sample": False}
        return model.generate(models.prompt(12).to(first) % 128, max_new_tokens=8, **options).cpu()

    expected = tokens(_split(model(), ["cpu", "cpu"]), "cpu")
    split = _split(model(), ["remora:0", "remora:1"])
    assert torch.equal(tokens(split, "remora:0"), expected)
    assert torch.equal(tokens(split, "remora:0"), expected)  # from here on nothing is new
    before = remora.stats()
    assert torch.equal(tokens(split, "remora:0"), expected)
    spent = remora.stats() - before
    assert spent.plans == 0
    assert spent.peer_bytes < 40_000  # activations, and no cache


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    model = models.llama(4, vocabulary=256)
    model.save_pretrained(path, max_shard_size="100KB")
    ids = models.prompt(7, batch=2, vocabulary=256)
    return path, ids, model.generate(ids, max_new_tokens=6, do_sample=False)


LAYERS = {
    "model.embed_tokens": "remora:0",
    "model.layers.0": 0,
    "model.layers.1": "remora:0",
    **dict.fromkeys(
        ("model.layers.2", "model.layers.3", "model.norm", "model.rotary_emb", "lm_head"), "remora:1"
    ),
}
MAPS: dict[str, tuple[dict[str, Any], set[torch.device]]] = {
    "auto": ({"device_map": "auto"}, {ZERO, ONE}),
    "balanced": ({"device_map": "balanced"}, {ZERO, ONE}),
    "sequential": ({"device_map": "sequential"}, {ZERO}),
    "little memory": ({"device_map": "sequential", "max_memory": {0: "300KB", 1: "1GB"}}, {ZERO, ONE}),
    "names": ({"device_map": "auto", "max_memory": {"remora:0": "300KB", "remora:1": "1GB"}}, {ZERO, ONE}),
    "one": ({"device_map": {"": "remora:1"}}, {ONE}),
    "a dict": ({"device_map": LAYERS}, {ZERO, ONE}),
}


@pytest.mark.parametrize("name", MAPS)
def test_device_map_spreads_a_model(both, checkpoint, name):
    from transformers import AutoModelForCausalLM

    path, ids, expected = checkpoint
    options, devices = MAPS[name]
    options = {key: dict(item) if isinstance(item, dict) else item for key, item in options.items()}
    model = AutoModelForCausalLM.from_pretrained(path, **options)
    assert {parameter.device for parameter in model.parameters()} == devices
    tokens = model.generate(ids.to("remora:0"), max_new_tokens=6, do_sample=False)
    assert tokens.device == ZERO
    assert torch.equal(tokens.cpu(), expected)


def test_accelerate_counts_the_memory_of_each_device(both):
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_max_memory

    found = get_max_memory()
    assert list(found) == [0, 1, "cpu"]
    assert all(0 < found[index] <= 2 << 30 for index in (0, 1))
    assert get_max_memory({0: "1GB", "remora:1": "2GB"}) == {0: 10**9, "remora:1": 2 * 10**9}
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    spread = infer_auto_device_map(model, {0: 4000, 1: 4000, "cpu": 10**9})
    assert set(spread.values()) == {0, 1}


# -- files


def test_saved_tensors_come_back_to_their_device_or_another(both, tmp_path):
    file = tmp_path / "saved.pt"
    a, b = torch.randn(3, 4, device="remora:0"), torch.randn(3, 4, device="remora:1")
    torch.save({"a": a, "b": b, "row": b[1]}, file)
    for where, devices in {None: (ZERO, ONE), "remora:1": (ONE, ONE), "remora": (ZERO, ZERO)}.items():
        found = torch.load(file, map_location=where)
        assert (found["a"].device, found["b"].device) == devices
        assert torch.equal(found["a"].cpu(), a.cpu())
        found["b"].zero_()
        assert found["row"].sum().item() == 0
    assert torch.load(file, map_location="cpu")["b"].device.type == "cpu"
    swapped = torch.load(file, map_location={"remora:0": "remora:1", "remora:1": "remora:0"})
    assert (swapped["a"].device, swapped["b"].device) == (ONE, ZERO)
    assert torch.equal(swapped["b"].cpu(), b.cpu())
    with torch.remora.device(1):
        assert torch.load(file, map_location="remora")["a"].device == ONE
    with pytest.raises(RuntimeError, match="remora:5 does not exist"):
        torch.load(file, map_location="remora:5")


def test_safetensors_load_to_a_later_device(both, tmp_path):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "saved.safetensors"
    made = {"a": torch.randn(3, 4, device="remora:1")}
    save_file(made, file)
    for where in ("remora:1", 1, "remora:0"):
        found = load_file(file, device=where)["a"]
        assert found.device == (ZERO if where == "remora:0" else ONE)
        assert torch.equal(found.cpu(), made["a"].cpu())


AS_CUDA = """
import sys, torch, remora
remora.as_cuda()
remora.connect(sys.argv[1:], placement="explicit")
assert torch.cuda.device_count() == 2 and torch.cuda.is_available()
a = torch.ones(2, device="cuda:1")
assert a.device == torch.device("remora", 1) and a.cuda(0).device.index == 0
torch.cuda.set_device(1)
assert torch.ones(2).cuda().device.index == torch.ones(2, device="cuda").device.index == 1
with torch.cuda.device("cuda:0"):
    assert torch.ones(2).to("cuda").device.index == torch.cuda.current_device() == 0
assert torch.cuda.memory_allocated("cuda:1") == a.nbytes
assert torch.cuda.Stream(device="cuda:1").device.index == 1
assert len(torch.cuda.default_generators) == 2
torch.cuda.set_rng_state(torch.cuda.get_rng_state("cuda:0"), "cuda:1")
assert torch.equal(torch.rand(2, device="cuda:0").cpu(), torch.rand(2, device="cuda:1").cpu())
"""


def test_programs_for_several_gpus(executors):
    done = run_program(AS_CUDA, *executors)
    assert done.returncode == 0, done.stderr


def test_data_parallel_says_what_to_do(both):
    model, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    expected = model(inputs).detach()
    model.to("remora:1")
    one = nn.DataParallel(model, device_ids=[1])
    assert torch.equal(one(inputs).detach().cpu(), expected)
    with pytest.raises(
        NotImplementedError, match=r"give device_ids=\[1\], or put parts of the model on each"
    ):
        nn.DataParallel(model, device_ids=[1, 0])(inputs)


@pytest.mark.parametrize(
    "first", ["torch.remora.device_count() == 2", 'torch.ones(2, device="remora:1").sum() == 2']
)
def test_the_environment_may_ask_for_it(executors, first):
    program = f"""
import torch, remora
assert {first}
assert torch.remora.device_count() == 2
assert torch.ones(2, device="remora:1").to("remora:0").sum().item() == 2
"""
    environment = {"REMORA_URL": ",".join(executors), "REMORA_PLACEMENT": "explicit"}
    done = run_program(program, **environment)
    assert done.returncode == 0, done.stderr
