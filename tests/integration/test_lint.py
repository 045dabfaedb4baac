"""`remora run --lint`: which lines waited, how often, why, and at what cost."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from warm_python import run_command

from remora.session.lint import HINTS

# Each waiting line says at its end what is expected: kind and times.
SCRIPT = """
import io, threading
import torch

def mean(x):
    return x.mean().item()  # number 4

w = torch.randn(40, 40).to("remora")
x = torch.ones(40, 40, device="remora")
for step in range(6):
    x = torch.tanh(x @ w)
    if step % 2 == 0:
        float(x.sum())  # number 3
    if x.sum() > 100_000:  # branch 6
        break
print(x[0, :3])  # print 1
f"{x.sum():.2f}"  # print 1
x.nonzero()  # shape 1
y = x[x > 0]  # shape 1
x.cpu()  # copy 1
x[0].tolist()  # copy 1
torch.remora.get_rng_state()  # a value like others: no wait
torch.remora.memory_stats()  # question 1
torch.remora.synchronize()  # synchronize 1
torch.equal(x, x + 1)  # compare 1
torch.save(x, io.BytesIO())  # save 1
big = torch.randn(1000, 1000).to("remora")  # upload 1
big.cpu()  # copy 1
while not (x.sum() > 100_000):  # branch 1
    break
mean(x) + mean(x) + mean(x)
thread = threading.Thread(target=mean, args=(x,))
thread.start()
thread.join()
torch.nn.utils.get_total_norm([x, w], error_if_nonfinite=True)  # branch 1
n = torch.tensor([3, 4]).to("remora")
if n.sum() == 7 and n[0].item() == 3:  # known here: no wait
    pass
if "boom" in __import__("sys").argv:
    1 / 0
"""


def expected() -> dict[int, tuple[str, int]]:
    found = {}
    for number, line in enumerate(SCRIPT.splitlines(), 1):
        kind, _, times = line.rpartition("# ")[2].partition(" ")
        if kind in HINTS:
            found[number] = kind, int(times)
    return found


def run(
    path: Path, *options: str, url: str, arguments: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return run_command("run", *options, str(path), *arguments, REMORA_URL=url)


@pytest.fixture(scope="module")
def linted(executor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lint")
    script = folder / "train.py"
    script.write_text(SCRIPT)
    done = run(script, "--lint", "--lint-json", str(folder / "found.json"), url=executor.url)
    assert done.returncode == 0, done.stderr
    return script, done, json.loads((folder / "found.json").read_text())


def test_every_wait_is_found_at_its_line_with_its_kind_and_count(linted):
    script, _, found = linted
    waits = {wait["line"]: (wait["kind"], wait["calls"]) for wait in found["waits"]}
    assert waits == expected()
    assert {wait["file"] for wait in found["waits"]} == {str(script)}
    ops = {wait["op"] for wait in found["waits"]}
    assert ops == {"", "aten.index.Tensor", "aten.nonzero.default"}


def test_costs_are_round_trips_at_the_measured_rate_dearest_first(linted):
    _, _, found = linted
    assert 0 < found["round_trip_s"] < 1
    for wait in found["waits"]:
        assert wait["cost_s"] == pytest.approx(wait["round_trips"] * found["round_trip_s"])
        large = SCRIPT.splitlines()[wait["line"] - 1].startswith("big")  # asked for, and then sent or read
        assert wait["round_trips"] == wait["calls"] * (2 if large else 1)
        assert wait["waited_s"] > 0
    costs = [wait["cost_s"] for wait in found["waits"]]
    assert costs == sorted(costs, reverse=True)
    assert found["waits"][0]["kind"] == "branch"


def test_the_line_in_a_library_that_waits_is_named(linted):
    _, _, found = linted
    vias = {wait["via"].partition(":")[0] for wait in found["waits"]}
    assert vias == {"", "torch/nn/utils/clip_grad.py", "torch/serialization.py"}


def test_the_table_is_on_stderr_with_hints_and_the_script_keeps_its_stdout(linted):
    _, done, found = linted
    assert done.stdout.startswith("tensor([")
    assert done.stdout.count("\n") == 1
    for text in ("if x.sum() > 100_000:", "branch on a value", "torch.where", "train.py:14"):
        assert text in done.stderr
    calls = sum(wait["calls"] for wait in found["waits"])
    assert f"remora lint: {calls} waits cost" in done.stderr


def test_a_script_that_fails_is_reported_all_the_same(executor, linted):
    script, _, _ = linted
    done = run(script, "--lint", url=executor.url, arguments=("boom",))
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "waits cost" in done.stderr


def test_nothing_to_report(executor, tmp_path):
    script = tmp_path / "quiet.py"
    script.write_text("import torch\n")
    assert "opened no session" in run(script, "--lint", url=executor.url).stderr
    script.write_text("import torch\ntorch.ones(3, device='remora') + 1\n")
    assert "nothing waited" in run(script, "--lint", url=executor.url).stderr
