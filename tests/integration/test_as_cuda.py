"""`remora run --as-cuda`: scripts that say "cuda" and know nothing of Remora."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from executor_process import ExecutorProcess

DEVICES = """
import json, torch
from torch import nn

assert torch.cuda.is_available() and torch.cuda.device_count() == 1 and torch.cuda.current_device() == 0
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(0); torch.cuda.manual_seed(0); torch.cuda.manual_seed_all(0)
layer = nn.Linear(2, 2)
tensors = {
    "string": torch.ones(2, device="cuda"),
    "index": torch.ones(2, device="cuda:0"),
    "device": torch.zeros(2, device=device),
    "number": torch.ones(2).to(0),
    "data": torch.tensor([1.0, 2.0], device=device),
    "as_tensor": torch.as_tensor([1.0], device="cuda"),
    "arange": torch.arange(3, device="cuda"),
    "fftfreq": torch.fft.fftfreq(4, device="cuda"),
    "like": torch.zeros_like(torch.ones(2), device="cuda"),
    "new": torch.ones(2).new_tensor([3.0], device="cuda"),
    "to": torch.ones(2).to(device),
    "to_dtype": torch.ones(2).to("cuda", torch.float16),
    "to_keywords": torch.ones(2).to(dtype=torch.float16, device="cuda"),
    "cuda": torch.ones(2).cuda(),
    "cuda_index": torch.ones(2).cuda(0),
    "pinned": torch.ones(2).pin_memory().cuda(non_blocking=True),
    "type": torch.ones(2).type("torch.cuda.HalfTensor"),
    "there_already": torch.ones(2, device="cuda").to("cuda"),
    "module_cuda": nn.Linear(2, 2).cuda().weight,
    "module_to": nn.Linear(2, 2).to(device, torch.float16).weight,
    "module_made": nn.Linear(2, 2, device="cuda").weight,
    "module_empty": nn.Linear(2, 2, device="meta").to_empty(device="cuda").weight,
}
with torch.device("cuda"):
    tensors["with"] = torch.ones(2)
generator = torch.Generator(device="cuda").manual_seed(1)
tensors["drawn"] = torch.rand(2, device="cuda", generator=generator) * 0
with torch.random.fork_rng():
    torch.manual_seed(5)
    tensors["dropped"] = torch.rand(2, device="cuda") * 0
with torch.cuda.device(0):
    tensors["cuda_device"] = torch.ones(2).cuda()
torch.set_default_device("cuda")
tensors["default"] = torch.ones(2)
torch.set_default_device(None)
wrong = {name: str(t.device) for name, t in tensors.items() if str(t.device) != "remora:0" or not t.is_cuda}
sum_ = sum(t.double().sum().item() for n, t in tensors.items() if not n.startswith("module"))
torch.cuda.synchronize(); torch.cuda.empty_cache()
free, total = torch.cuda.mem_get_info()
start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
start.record(); end.record()
ms = start.elapsed_time(end)
local = [str(torch.ones(1).device), torch.ones(1).is_cuda, str(torch.ones(1).to("cpu").device)]
name = torch.cuda.get_device_name()
with torch.cuda.stream(torch.cuda.Stream()) as _:
    torch.cuda.current_stream().wait_stream(torch.cuda.default_stream("cuda"))
held = torch.cuda.memory_allocated("cuda:0") > 0 and torch.cuda.get_device_properties("cuda").total_memory > 0
held = held and torch.cuda.get_device_capability() == (0, 0) and torch.cuda.max_memory_allocated() > 0
print(json.dumps([wrong, sum_, 0 < free <= total and held, ms >= 0, local, name == torch.remora.get_device_name()]))
"""

EVALUATION = """
import json, torch
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(3)
device = torch.device("cuda")
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).to(device).eval()
x = torch.randn(12, 4)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4, pin_memory=True)
losses = []
with torch.no_grad():
    for inputs, targets in loader:
        inputs, targets = inputs.to(device, non_blocking=True), targets.cuda(non_blocking=True)
        losses.append(torch.nn.functional.mse_loss(model(inputs), targets).item())
print(json.dumps(losses))
"""

CHECKPOINTS = """
import io, json, torch

weight = torch.arange(6.0).reshape(2, 3)
saved = io.BytesIO()
torch.save({"weight": weight, "row": weight[0], "steps": 3, "more": [torch.nn.Parameter(torch.ones(2))]}, saved)
seen = []
for place in ("cuda", "cuda:0", torch.device("cuda"), {"cpu": "cuda:0"}, "cpu", None):
    saved.seek(0)
    state = torch.load(saved, map_location=place)
    state["weight"][0, 1] = 7  # the row shares its memory
    seen.append([str(state["weight"].device), state["row"].tolist(), state["steps"], str(state["more"][0].device)])
print(json.dumps(seen))
"""

REFUSALS = """
import json, torch
said = {}
for what in (
    'torch.cuda.CUDAGraph()', 'torch.cuda.memory_snapshot()',
    'torch.ones(2).untyped_storage().cuda()', 'torch.ones(2).to("cuda:1")',
):
    try:
        eval(what)
        said[what] = "nothing"
    except Exception as error:
        said[what] = f"{type(error).__name__}: {error}"
with torch.autocast("cuda", enabled=False):
    assert torch.ones(2, device="cuda").dtype == torch.float32
assert isinstance(torch.Generator(), torch.Generator) and isinstance(torch.default_generator, torch.Generator)
assert isinstance(torch.cuda.CUDAGraph | None, object)  # as transformers annotates
assert torch.jit.script(torch.nn.Linear(2, 2))(torch.ones(1, 2)).shape == (1, 2)
print(json.dumps(said))
"""

PROBES = """
import json
from remora.device.as_cuda import AS_CUDA_PATCHES
print(json.dumps({patch.name: patch.probe() for patch in AS_CUDA_PATCHES}))
"""

PRECISION = """
import json, torch
from torch import nn
torch.manual_seed(0)
model = nn.Linear(4, 4).cuda()
optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cuda", init_scale=8.0)
with torch.autocast("cuda", dtype=torch.bfloat16):
    out = model(torch.ones(2, 4, device="cuda"))
    inside = [torch.is_autocast_enabled(), torch.is_autocast_enabled("cuda"), str(torch.get_autocast_gpu_dtype())]
with torch.cuda.amp.autocast(dtype=torch.float16):
    old = str((out @ out.T).dtype)
scaler.scale(out.float().sum()).backward()
scaler.step(optimizer)
scaler.update()
print(json.dumps([str(out.dtype), old, inside, torch.is_autocast_enabled(), scaler.get_scale(), model.bias.tolist()]))
"""

GENERATE = """
import json, torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(0)
config = GPT2Config(n_layer=2, n_embd=48, n_head=4, vocab_size=512, bos_token_id=0, eos_token_id=511, pad_token_id=0)
model = GPT2LMHeadModel(config).eval()
ids = torch.randint(1, 500, (1, 8))
def tokens(device):
    return model.to(device).generate(ids.to(device), max_new_tokens=6, do_sample=False).tolist()
expected = tokens("cpu")
model.save_pretrained(FOLDER)
placed = GPT2LMHeadModel.from_pretrained(FOLDER).eval().cuda()
also = placed.generate(ids.cuda(), max_new_tokens=6, do_sample=False).tolist()
print(json.dumps([tokens("cuda") == expected, also == expected, str(placed.device)]))
"""


SCRIPTS = {
    "devices": DEVICES,
    "evaluation": EVALUATION,
    "checkpoints": CHECKPOINTS,
    "refusals": REFUSALS,
    "precision": "import warnings; warnings.simplefilter('ignore')" + PRECISION,
    "generate": GENERATE,
    "probes": PROBES,
}

# One process runs them all: each costs the start of an interpreter else. What a script prints last is its answer.
ALL = """
import contextlib, io, json, pathlib, sys, traceback, warnings

answers = {}
for name, source in json.loads(pathlib.Path(sys.argv[1]).read_text()).items():
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said):
            exec(compile(source, name, "exec"), {"__name__": "__main__"})
        answers[name] = json.loads(said.getvalue().splitlines()[-1])
    except BaseException:
        answers[name] = traceback.format_exc()
print(json.dumps(answers))
"""


def _run(tmp_path: Path, source: str, *options: str, after: tuple[str, ...] = ()) -> Any:
    script = tmp_path / "script.py"
    script.write_text(source)
    code = "from remora.cli.main import main; main()"
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, "run", *options, str(script), *after]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def answers(executor: ExecutorProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each of SCRIPTS says under `--as-cuda`."""
    folder = tmp_path_factory.mktemp("as_cuda")
    scripts = folder / "scripts.json"
    named = {name: text.replace("FOLDER", repr(str(folder / "model"))) for name, text in SCRIPTS.items()}
    scripts.write_text(json.dumps(named))
    return _run(folder, ALL, "--as-cuda", "--url", executor.url, after=(str(scripts),))


def _here(source: str) -> Any:
    """What it says in this process, on the CPU."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(source, "here", "exec"), {"__name__": "__main__"})
    return json.loads(said.getvalue().splitlines()[-1])


def test_every_way_to_say_cuda_gives_remora(answers: dict[str, Any]) -> None:
    wrong, total, memory, event, local, name = answers["devices"]
    assert wrong == {}
    assert total == pytest.approx(37.5)
    assert (memory, event) == (True, True)
    assert local == ["cpu", False, "cpu"]
    assert name is True


def test_evaluation_on_cuda_has_the_losses_of_the_cpu(answers: dict[str, Any]) -> None:
    local = EVALUATION.replace('"cuda"', '"cpu"').replace(".cuda(non_blocking=True)", "")
    expected = _here(local.replace("pin_memory=True", "pin_memory=False"))
    assert answers["evaluation"] == pytest.approx(expected, rel=1e-6)


def test_checkpoints_load_to_cuda_and_share_what_they_shared(answers: dict[str, Any]) -> None:
    remote = ["remora:0", [0, 7, 2], 3, "remora:0"]
    local = ["cpu", [0, 7, 2], 3, "cpu"]
    assert answers["checkpoints"] == [remote, remote, remote, remote, local, local]


def test_what_cannot_be_kept_is_refused_by_name(answers: dict[str, Any]) -> None:
    said = dict(answers["refusals"])
    missing = said.pop('torch.ones(2).to("cuda:1")')
    assert "remora:1 does not exist" in missing
    assert all(words.startswith("NotSupported: ") for words in said.values()), said


def test_autocast_on_cuda_is_the_devices(answers: dict[str, Any]) -> None:
    out, old, inside, after, scale, bias = answers["precision"]
    assert (out, old) == ("torch.bfloat16", "torch.float16")
    assert (inside, after, scale) == ([True, True, "torch.bfloat16"], False, 8)
    local = PRECISION.replace('torch.autocast("cuda"', 'torch.autocast("cpu"').replace(".cuda()", "")
    local = local.replace("torch.cuda.amp.autocast(", "torch.autocast('cpu', ").replace(
        'device="cuda"', "device='cpu'"
    )
    local = local.replace('GradScaler("cuda"', 'GradScaler("cpu"').replace(
        "torch.get_autocast_gpu_dtype()", "0"
    )
    assert _here(local)[-1] == bias


def test_generate_on_cuda_has_the_tokens_of_the_cpu(answers: dict[str, Any]) -> None:
    assert answers["generate"] == [True, True, "remora:0"]


def test_every_patch_probes_well(answers: dict[str, Any]) -> None:
    assert len(answers["probes"]) == 7
    assert set(answers["probes"].values()) == {None}


def test_without_the_option_cuda_is_pytorchs_own(tmp_path: Path) -> None:
    source = "import torch, json; print(json.dumps(hasattr(torch.empty, '_remora_as_cuda')))"
    assert _run(tmp_path, source) is False
