"""`remora estimate` on whole scripts: what it prints, its exit code, and how near it is to a real run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from warm_python import TRANSFORMERS, run_command

import remora
from remora.plan.kept import VERSION, Calibration, to_json
from remora.session.connect import current
from remora.session.rehearsal import rehearsing

GENERATE = """
import sys, torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(0)
config = GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=512, bos_token_id=0, eos_token_id=511)
model = GPT2LMHeadModel(config).eval().to("remora")
ids = torch.randint(1, 511, (1, 8)).to("remora")
out = model.generate(ids, max_new_tokens=int(sys.argv[1]), do_sample=False, pad_token_id=0)
print(tuple(out.shape))
"""
TRAIN = """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10)).to("DEVICE")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(6):
    x, y = torch.randn(64, 256).to("DEVICE"), torch.randint(0, 10, (64,)).to("DEVICE")
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    loss.item()
"""
TOO_LARGE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(
    num_hidden_layers=4, hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=32000, eos_token_id=31999, bos_token_id=0,
)
with torch.device("meta"):
    model = LlamaForCausalLM(config).eval()
model = model.to("remora")
ids = torch.randint(1, 512, (1, 16)).to("remora")
with torch.inference_mode():
    model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
"""


def estimate(tmp_path: Path, text: str, *options: str, after: tuple[str, ...] = ()):
    script = tmp_path / "script.py"
    script.write_text(text)
    return run_command(
        "estimate",
        *options,
        str(script),
        *after,
        modules=TRANSFORMERS,
        timeout_s=110,
        warnings_are_errors=False,
        REMORA_URL="http://127.0.0.1:1",  # where nobody is
    )


def test_generate_has_phases_caches_and_returned_bytes(tmp_path: Path) -> None:
    done = estimate(tmp_path, GENERATE, "--device", "h100", "--json", after=("12",))
    assert done.returncode == 0, done.stderr
    shape, last = done.stdout.splitlines()
    assert shape == "(1, 20)"  # it goes on to the end, though no token was computed
    tree = json.loads(last)
    prefill, decode = tree["phases"]
    assert (prefill["name"], prefill["steps"]) == ("prefill", 1)
    assert (decode["name"], decode["steps"]) == ("decode", 11)
    assert decode["step_s"] >= decode["executors_s"] > 0
    assert 0 < decode["sent_nbytes"] < 1000
    assert tree["fits"] is True
    (executor,) = tree["executors"]
    assert executor["held"]["weight"] == 4 * (512 * 64 + 1024 * 64 + 2 * (12 * 64 * 64 + 13 * 64) + 2 * 64)
    lengths = 8 + 12 - 1
    positions = executor["held"]["kv_cache"] / (
        2 * 2 * 64 * 4
    )  # a step's old cache lives until the next one tells
    assert lengths - 6 <= positions <= 2 * lengths
    assert tree["reads"]["guessed"] == 12
    assert all("script.py:8" in line for line, _ in tree["reads"]["where"])


def test_training_has_states_and_a_text(tmp_path: Path) -> None:
    done = estimate(
        tmp_path, TRAIN.replace("DEVICE", "cuda"), "--as-cuda", "--device", "a10,a10", "--link", "1gbit,2ms"
    )
    assert done.returncode == 0, done.stderr
    assert "2 executors, placement semantic, link 1gbit,2ms" in done.stderr
    assert "Memory: it fits" in done.stderr
    for word in ("weight", "optimizer_state", "backward", "client to 0: input", "6 of 6 reads"):
        assert word in done.stderr
    assert done.stdout == ""


def test_a_model_that_is_too_large_is_told_by_how_much(tmp_path: Path) -> None:
    weights = 4 * (2 * 32000 * 4096 + 4 * (4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) + 2 * 4096) + 4096 + 64)
    done = estimate(tmp_path, TOO_LARGE, "--device", "a10", "--memory", "2GiB", "--json")
    assert done.returncode == 1, done.stderr
    tree = json.loads(done.stdout)
    assert tree["fits"] is False
    assert "the pool is too small" in tree["refused"]
    (executor,) = tree["executors"]
    assert executor["held"]["weight"] == weights
    assert executor["missing_nbytes"] == executor["peak_nbytes"] - (2 << 30) > weights - (2 << 30)
    assert "Traceback" not in done.stderr
    assert estimate(tmp_path, TOO_LARGE, "--device", "a10,a10", "--memory", "4GiB").returncode == 0


@pytest.mark.parametrize(
    ("text", "options", "code", "said"),
    [
        ("1 / 0", (), 1, "ZeroDivisionError"),
        ("import sys; sys.exit(7)", (), 7, "never used the remora device"),
        ("pass", ("--device", "h300"), 1, "remora estimate: no device is called 'h300'; there is: h100"),
        ("pass", ("--memory", "much"), 2, "is not an amount of memory"),
        ("pass", ("--placement", "best"), 1, "no placement 'best'"),
    ],
)
def test_what_goes_wrong_has_its_exit_code(tmp_path: Path, text, options, code, said) -> None:
    done = estimate(tmp_path, text, *options)
    assert done.returncode == code
    assert said in done.stderr


def test_an_executor_and_a_file_tell_what_they_measured(executor, tmp_path: Path) -> None:
    measured = estimate(tmp_path, TRAIN.replace("DEVICE", "remora"), "--device", executor.url, "--json")
    assert measured.returncode == 0, measured.stderr
    tree = json.loads(measured.stdout)
    assert tree["link"] == "measured"
    assert tree["executors"][0]["source"] == "measured"
    assert tree["executors"][0]["cap_nbytes"] == 2 << 30


def test_a_calibration_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from remora.plan.presets import parse_link, preset
    from remora.session import connect

    monkeypatch.setattr(connect, "_instead", None)
    path = tmp_path / "mine.json"
    path.write_bytes(to_json(Calibration(VERSION, "some executor", preset("l4"), {"": parse_link("1gbit")})))
    sessions = rehearsing(str(path), [])
    remora.connect()
    try:
        (session,) = sessions
        assert session is current()
        assert (session.sources, session.pool.devices[0].name) == (("calibration",), "l4")
        assert session.pool.client[0] == parse_link("1gbit")
    finally:
        remora.disconnect()


def test_what_is_recorded_is_what_a_real_session_records(executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row and segment by segment, whatever was read."""
    from remora.session import connect

    monkeypatch.setattr(connect, "_instead", None)

    def recorded() -> list[tuple[str, ...]]:
        import torch

        remora.connect(executor.url)
        session = current()
        seen: list[tuple[str, ...]] = []
        session.tap = lambda segment: seen.append(tuple(n.op for n in segment.captured.template.nodes))
        torch.manual_seed(0)
        exec(compile(GENERATE, "script", "exec"), {"__name__": "script"})
        exec(compile(TRAIN.replace("DEVICE", "remora"), "train", "exec"), {"__name__": "script"})
        remora.disconnect()
        return seen

    monkeypatch.setattr(sys, "argv", ["script", "6"])
    real = recorded()
    rehearsing("cpu-2core", [])
    assert recorded() == real
