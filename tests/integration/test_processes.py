"""Forks, spawned processes, DataLoader workers and threads of a program that uses the device."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from warm_python import run_program

START = """
import multiprocessing, os, select, signal, sys, threading, time, warnings
import torch, remora
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

warnings.filterwarnings("ignore", category=DeprecationWarning)  # of os.fork in a process with threads
url = sys.argv[1]

def in_child(program):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            said = repr(program())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode()[:4000])
        os._exit(0)
    os.close(writing)
    if not select.select([reading], [], [], 30)[0]:
        os.kill(pid, signal.SIGKILL)
        return "hangs"
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said
"""

FORKS = """
remora.connect(url)
x = torch.arange(4.0).to("remora")
y = x * 2  # recorded, and not sent yet
leaf = torch.ones(2, device="remora", requires_grad=True)
uses = {
    "repr": lambda: repr(y), "add": lambda: x + 1, "item": lambda: x.sum().item(), "cpu": lambda: y.cpu(),
    "new": lambda: torch.ones(2, device="remora"), "to": lambda: torch.ones(2).to("remora"),
    "save": lambda: torch.save(y, "/dev/null"), "data": lambda: setattr(x, "data", y),
    "backward": lambda: (leaf * 2).sum().backward(),
}
for name, use in uses.items():
    said = in_child(use)
    assert said.startswith("Disconnected: ") and f"belongs to process {os.getpid()}" in said, (name, said)

def seeded():
    torch.manual_seed(3)
    torch.remora.synchronize()
    return torch.rand(2).tolist()

assert in_child(seeded) == repr(seeded())
assert in_child(lambda: [remora.disconnect(), remora.stats().ops]) == "[None, 0]"

def own_session():
    remora.connect(url)
    mine = torch.ones(3, device="remora").sum().item()
    try:
        (x + torch.ones(4, device="remora")).cpu()
    except RuntimeError as error:
        said = type(error).__name__
    remora.disconnect()
    return mine, said

assert in_child(own_session) == "(3.0, 'Disconnected')"

done = False
def record():
    a = torch.ones(8, device="remora")
    while not done:
        a = a * 1.0
        a.sum().item()
thread = threading.Thread(target=record)
thread.start()
for _ in range(3):
    assert in_child(lambda: x + 1).startswith("Disconnected: ")
    assert in_child(own_session) == "(3.0, 'Disconnected')"
done = True
thread.join()
assert y.tolist() == [0, 2, 4, 6] and (x + y).tolist() == [0, 3, 6, 9]
assert remora.stats().reconnects == 0
"""

LOADERS = """
remora.connect(url)

class Numbers(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return torch.full((2,), float(i)), {"i": i}

class There(Dataset):
    def __init__(self):
        self.tensor = torch.arange(4.0).to("remora")
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return self.tensor[i]

for options in ({"num_workers": 2}, {"num_workers": 2, "pin_memory": True, "persistent_workers": True}):
    loader = DataLoader(Numbers(), batch_size=2, **options)
    for _ in range(2):
        batches = [(x.to("remora", non_blocking=True).sum().item(), more["i"].tolist()) for x, more in loader]
        assert batches == [(2.0, [0, 1]), (10.0, [2, 3])], batches
spawned = DataLoader(TensorDataset(torch.arange(4.0)), 2, num_workers=1, multiprocessing_context="spawn")
assert [x.to("remora").tolist() for (x,) in spawned] == [[0, 1], [2, 3]]
assert [x.tolist() for x in DataLoader(There(), batch_size=2)] == [[0, 1], [2, 3]]
try:
    list(DataLoader(There(), batch_size=2, num_workers=1))
except RuntimeError as error:
    assert "call remora.connect() here" in str(error), error
else:
    raise AssertionError("a worker used its parent's tensor")
assert There()[2].item() == 2
"""

SPAWNED = """
import torch.multiprocessing
os.environ["REMORA_URL"] = url  # what a spawned process connects to
tensor = torch.arange(3.0, device="remora")
with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
    model = nn.Linear(3, 2).to("remora")
    expected = model(tensor).tolist()
    assert pool.apply(nn.Module.__call__, (model, tensor)).tolist() == expected
"""

THREADS = """
os.environ["REMORA_URL"] = url
losses = {}

def train(device, seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    model.to(device)
    x = torch.randn(4, 8, generator=generator).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(8):
        if step == seed:
            try:
                x @ torch.ones(3, 3, device=device)
            except RuntimeError:
                pass
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.setdefault((device, seed), []).append(loss.item())

torch.set_num_threads(1)
threads = [threading.Thread(target=train, args=("remora", seed)) for seed in range(4)]  # no session yet
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
for seed in range(4):
    train("cpu", seed)
    assert losses["remora", seed] == losses["cpu", seed], (seed, losses)

failed = []
threading.excepthook = lambda arguments: failed.append(arguments.exc_type.__name__)
thread = threading.Thread(target=lambda: torch.ones(2, device="remora")[[7]].cpu())
thread.start()
thread.join()
assert failed == ["ExecutorIndexError"]
leaf = torch.ones(3, device="remora", requires_grad=True)
loss = (leaf * leaf).sum()
thread = threading.Thread(target=loss.backward)
thread.start()
thread.join()
assert leaf.grad.tolist() == [2, 2, 2]
"""


@pytest.mark.parametrize("program", ["FORKS", "LOADERS", "SPAWNED", "THREADS"])
def test_program(executor: Any, program: str) -> None:
    done = run_program(START + globals()[program], executor.url, timeout_s=100)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_fixture_still_works(connected: ModuleType) -> None:
    """The executor outlives all of the above."""
    import torch

    assert torch.ones(2, device="remora").sum().item() == 2
