"""A program that never uses remora behaves the same where it is installed and where it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from warm_python import run_program

FACTS = """
import json, sys, warnings, weakref
mode = sys.argv[1]
import torch
if mode == "imported":
    import remora
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

x = torch.arange(6.0).reshape(2, 3)

def module_to():
    layer = nn.Linear(2, 2)
    weight, view, reference = layer.weight, layer.weight[0], weakref.ref(layer.weight)
    layer(torch.ones(1, 2)).sum().backward()
    layer.double()
    return layer.weight is weight is reference(), weight.dtype, weight.grad.dtype, view.dtype

def tied():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    nn.Sequential(first, second).half()
    return first.weight is second.weight

def load_state():
    layer = nn.Linear(2, 2)
    weight = layer.weight
    address = weight.data_ptr()
    layer.load_state_dict(nn.Linear(2, 2).state_dict())
    return layer.weight is weight, weight.data_ptr() == address

def checkpointed():
    from torch.utils.checkpoint import checkpoint
    torch.manual_seed(0)
    y = torch.ones(2, requires_grad=True)
    checkpoint(lambda t: nn.functional.dropout(t * 2), y, use_reentrant=False).sum().backward()
    return y.grad

def backward_thread():
    import threading
    seen = set()
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            return t * 2
        @staticmethod
        def backward(ctx, gradient):
            seen.add(threading.current_thread() is threading.main_thread())
            return gradient
    Double.apply(x.clone().requires_grad_()).sum().backward()
    return seen

def forked():
    torch.manual_seed(1)
    with torch.random.fork_rng():
        torch.rand(3)
    return torch.rand(2)

def loaded(**options):
    return [batch[0].tolist() for batch in DataLoader(TensorDataset(x), batch_size=1, **options)]

def device_index():
    with torch.accelerator.device_index(0):
        return 0

facts = {
    "current accelerator": lambda: torch.accelerator.current_accelerator(),
    "checked": lambda: torch.accelerator.current_accelerator(check_available=True),
    "available": lambda: torch.accelerator.is_available(),
    "count": lambda: torch.accelerator.device_count(),
    "index": lambda: torch.accelerator.current_device_index(),
    "set index": lambda: torch.accelerator.set_device_index(0),
    "with index": device_index,
    "stream": lambda: torch.accelerator.current_stream(),
    "synchronize": lambda: torch.accelerator.synchronize(),
    "empty cache": lambda: torch.accelerator.empty_cache(),
    "memory": lambda: torch.accelerator.memory_allocated(),
    "memory stats": lambda: torch.accelerator.memory_stats(),
    "device module": lambda: torch.get_device_module().__name__,
    "pin": lambda: x.pin_memory(),
    "pin storage": lambda: x.untyped_storage().pin_memory(),
    "pinned": lambda: (x.is_pinned(), x.untyped_storage().is_pinned()),
    "loader, pinned": lambda: loaded(pin_memory=True),
    "loader, pinned, worker": lambda: loaded(pin_memory=True, num_workers=1),
    "default device": lambda: torch.get_default_device(),
    "swap flag": lambda: torch.__future__.get_swap_module_params_on_conversion(),
    "Module.to": module_to,
    "tied": tied,
    "load_state_dict": load_state,
    "checkpoint": checkpointed,
    "backward thread": backward_thread,
    "fork_rng": forked,
    "seed": lambda: (torch.manual_seed(3), torch.rand(2))[1],
    "deepcopy": lambda: __import__("copy").deepcopy(nn.Linear(1, 1)) is not None,
    "dlpack": lambda: torch.from_dlpack(torch.utils.dlpack.to_dlpack(x)),
    "safe_open": lambda: __import__("safetensors").safe_open("/nowhere", "pt"),
    "functions": lambda: (nn.Module._apply.__module__, nn.Module._apply.__qualname__, torch.Tensor.pin_memory.__name__),
}

def fact(f):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            said = repr(f())
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
    return [said, sorted({str(w.message) for w in caught})]

print(json.dumps({"registered": hasattr(torch, "remora"), **{name: fact(f) for name, f in facts.items()}}))
"""


def _facts(mode: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", FACTS, mode], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """PyTorch without remora."""
    return _facts("alone", TORCH_DEVICE_BACKEND_AUTOLOAD="0")


def test_installed_it_changes_nothing(alone: dict[str, Any]) -> None:
    facts = _facts("installed", REMORA_AUTOLOAD="")
    assert facts["registered"] is False
    assert facts == alone


def test_imported_and_never_used_it_changes_nothing(alone: dict[str, Any]) -> None:
    facts = _facts("imported")
    assert facts.pop("registered") is True
    assert facts == {name: fact for name, fact in alone.items() if name != "registered"}


def test_the_environment_asks_for_the_accelerator(alone: dict[str, Any]) -> None:
    facts = _facts("installed", REMORA_AUTOLOAD="1")
    assert facts["registered"] is True
    assert facts["current accelerator"][0] == "device(type='remora')"
    assert facts["available"][0] == "True"
    same = (
        "Module.to",
        "tied",
        "load_state_dict",
        "checkpoint",
        "backward thread",
        "seed",
        "default device",
        "dlpack",
    )
    assert {name: facts[name] for name in same} == {name: alone[name] for name in same}


def _run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_order_of_imports_and_no_executor_registers_by_accident() -> None:
    shown = "import sys; print(hasattr(torch, 'remora'), 'remora' in sys.modules)"
    nobody = {"REMORA_URL": "http://127.0.0.1:1"}  # nobody is called either
    assert _run(f"import torch; {shown}") == "False False\n"
    assert _run(f"import remora, torch; {shown}") == "True True\n"
    assert _run(f"import torch; {shown}", **nobody) == "True True\n"
    assert _run(f"import torch; {shown}", **nobody, REMORA_EXECUTOR="1") == "False True\n"


ANOTHER = """
import torch
seen = []
torch._C._accelerator_getAccelerator = lambda: torch.device("cpu")  # stands for a GPU of this machine
import remora
torch.cpu.synchronize = lambda device=None: seen.append(device)
assert torch.accelerator.current_accelerator() == torch.device("cpu")
assert torch.accelerator.is_available() and torch.get_device_module() is torch.cpu
torch.accelerator.synchronize()
assert len(seen) == 1, seen
"""


def test_another_accelerator_stays_the_accelerator() -> None:
    done = run_program(ANOTHER)
    assert done.returncode == 0, done.stderr


def test_a_session_makes_it_the_accelerator(executor: Any) -> None:
    code = f"""
import torch, remora
from torch.utils.data import DataLoader, TensorDataset
assert torch.accelerator.current_accelerator() is None
remora.connect({executor.url!r})
assert torch.accelerator.current_accelerator() == torch.device("remora")
x = torch.arange(6.0).reshape(2, 3)
assert x.pin_memory() is x and x.is_pinned() and x[0].is_pinned() and not x.clone().is_pinned()
for batch, in DataLoader(TensorDataset(x.clone()), batch_size=1, pin_memory=True, num_workers=1):
    assert batch.is_pinned()
    print(batch.to("remora", non_blocking=True).tolist())
for batch, in DataLoader(TensorDataset(x.to("remora")), batch_size=2):
    print(batch.device)
torch.set_default_device("remora")
print(torch.ones(2).device, torch.get_default_device(), torch.nn.Linear(1, 1).weight.device)
torch.set_default_device(None)
with torch.device("remora"):
    print(torch.zeros(1).device, torch.tensor([1]).device)
print(torch.zeros(1).device)
try:
    torch.ones(1, device="remora").pin_memory()
except RuntimeError as error:
    print(error)
"""
    done = run_program(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[[0.0, 1.0, 2.0]]",
        "[[3.0, 4.0, 5.0]]",
        "remora:0",
        "remora:0 remora:0 remora:0",
        "remora:0 remora:0",
        "cpu",
        "cannot pin 'torch.remora.FloatTensor' only dense CPU tensors can be pinned",
    ]
