"""`remora.explain()` of real sessions: what lived where, what moved, and whether it says the truth."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from warm_python import TRANSFORMERS, run_command

import remora
from remora.bench import models
from remora.errors import UsageError
from remora.plan.explain import CLIENT, Explanation, from_json

LAYERS, WIDTH, PROMPT, NEW = 2, 48, 12, 6
CACHE_NBYTES = 2 * LAYERS * WIDTH * 4  # of one token

SCRIPT = """
import sys
import torch
from remora.bench import models

model = models.gpt2(layers=2, width=48, vocabulary=136).eval().to("remora")
tokens = model.generate(models.prompt(12).to("remora") % 128, max_new_tokens=6, do_sample=False)
print(tokens.shape[1])
"""


@pytest.fixture
def disconnected():
    yield
    remora.disconnect()


def model_on(device: str):
    torch.manual_seed(5)
    # with a size that no other test has, whose weights would be on the executors already
    return models.gpt2(layers=LAYERS, width=WIDTH, vocabulary=136).eval().to(device)


def generated(model, n: int = NEW):
    prompt = models.prompt(PROMPT).to("remora") % 128
    return model.generate(prompt, max_new_tokens=n, do_sample=False, return_dict_in_generate=True)


def weights_nbytes(model) -> int:
    """Tied ones once, with the buffers that a step reads."""
    return sum(weight.nbytes for weight in model.parameters())


def held(tree: Explanation, executor: int) -> dict[str, int]:
    return {each.residency: each.nbytes for each in tree.executors[executor].held}


def moved(tree: Explanation, phase: str) -> dict[tuple[int, int, str], int]:
    (found,) = [each for each in tree.phases if each.name == phase]
    return {(each.source, each.target, each.residency): each.nbytes for each in found.transfers}


@pytest.mark.filterwarnings("ignore")
def test_semantic_keeps_weights_and_cache_together(executors, disconnected):
    remora.connect(executors, placement="semantic")
    model = model_on("remora")
    out = generated(model)
    tree = remora.explain()
    cache_nbytes = (PROMPT + NEW - 1) * CACHE_NBYTES
    (at,) = [number for number in range(2) if tree.executors[number].held]
    assert held(tree, at)["weight"] == weights_nbytes(model)
    assert held(tree, at)["kv_cache"] == cache_nbytes
    names = {each.residency: each.names for each in tree.executors[at].held}
    assert names["weight"] == ("transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1",
                               "transformer.ln_f")  # fmt: skip
    assert names["kv_cache"] == ("transformer.h.0", "transformer.h.1")
    assert moved(tree, "prefill")[CLIENT, at, "weight"] == weights_nbytes(model)
    assert moved(tree, "decode") == {(at, CLIENT, "output"): NEW - 1}  # whether all have ended, a byte
    (decode,) = [phase for phase in tree.phases if phase.name == "decode"]
    assert decode.steps == NEW - 1
    there = {each.residency: each.nbytes for each in decode.held[at]}
    assert decode.held_at == 4
    assert there["kv_cache"] == (PROMPT + 4) * CACHE_NBYTES
    assert 0.0 < decode.computed_s < decode.measured_s
    assert tree.picture.of == "a step of decode"
    assert {"h.0", "h.1"} <= set(tree.picture.columns)
    assert all(choice.chosen.startswith("all on executor") for choice in tree.choices)
    assert sum(template.runs for template in tree.templates if template.measured_s) > 0
    assert from_json(tree.to_json()) == tree
    text = str(tree)
    assert max(map(len, text.splitlines())) <= 100
    assert "kv_cache" in text
    del out


@pytest.mark.filterwarnings("ignore")
def test_blind_moves_the_cache_at_every_step(executors, disconnected):
    remora.connect(executors, placement="blind")
    model = model_on("remora")
    out = generated(model)
    tree = remora.explain()
    decode = moved(tree, "decode")
    steps = NEW - 1
    caches = sum(nbytes for (_, _, what), nbytes in decode.items() if what == "kv_cache")
    assert caches == sum((PROMPT + step) * CACHE_NBYTES for step in range(steps))
    assert decode[0, 1, "weight"] == weights_nbytes(model)  # once; then both have them
    between = sum(n for (source, target, _), n in decode.items() if CLIENT not in (source, target))
    assert between <= remora.stats().peer_bytes
    assert (1, 0, "weight") not in decode
    assert {turn.chosen.split(",")[0] for turn in tree.choices} >= {"all on executor 0", "all on executor 1"}
    del out


def test_uploads_show_as_what_they_turned_out_to_be(executors, disconnected, monkeypatch):
    """Too many to wait for their first use: they are bound, and sent, before anybody knows what they are."""
    monkeypatch.setattr("remora.session.pinned.PINNED_NBYTES", 1 << 20)
    remora.connect(executors[:1], placement="semantic")
    layers = [torch.nn.Linear(256, 256).to("remora") for _ in range(8)]
    ignored = torch.ones(1000, 100).to("remora")
    x = torch.ones(1, 256, device="remora")
    for layer in layers:
        x = layer(x)
    x.sum().item()
    tree = remora.explain()
    assert moved(tree, "forward")[CLIENT, 0, "weight"] == 8 * (256 * 256 + 256) * 4
    assert {(each, what) for each, _, what in moved(tree, "forward")} <= {
        (CLIENT, "weight"),
        (0, "output"),
    }
    waiting = [note for note in tree.notes if "wait at the client" in note]
    unused = [phase for phase in tree.phases if phase.name == "not used yet"]
    assert bool(waiting) != bool(unused)
    assert ignored is not None


def test_without_placement_there_is_nothing_to_explain(executors, disconnected):
    remora.connect(executors[0])
    with pytest.raises(UsageError, match=r'all runs on http://.*placement="semantic"'):
        remora.explain()
    remora.disconnect()
    with pytest.raises(UsageError, match="there is no session"):
        remora.explain()


def test_the_last_session_is_explained_after_it_has_ended(executors):
    remora.connect(executors, placement="local")
    x = torch.ones(64, 64).to("remora")
    (x @ x).sum().item()
    before = remora.explain()
    remora.disconnect()
    after = remora.explain()
    assert (after.policy, after.executors, after.phases) == ("local", before.executors, before.phases)


def test_a_program_that_failed_is_explained(executors, disconnected):
    remora.connect(executors, placement="data_aware")
    table = torch.ones(4, 8).to("remora")
    table.sum().item()
    with pytest.raises(IndexError):
        torch.nn.functional.embedding(torch.tensor([7]).to("remora"), table).sum().item()
    (first,) = [phase for phase in remora.explain().phases if phase.steps]
    assert first.steps == 1
    assert table.sum().item() == 32


class Tags(HTMLParser):
    """Whatever a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "data", "action")]


def explained(tmp_path, *options: str, script: str = SCRIPT, **environment: str):
    path = tmp_path / "script.py"
    path.write_text(script)
    environment = {"REMORA_CACHE": str(tmp_path / "cache"), **environment}
    return run_command(
        "explain",
        *options,
        str(path),
        modules=TRANSFORMERS,
        timeout_s=110,
        warnings_are_errors=False,
        **environment,
    )


def test_the_command_explains_a_script(executors, tmp_path):
    page = tmp_path / "page.html"
    done = explained(
        tmp_path, "--url", ",".join(executors), "--placement", "split", "--json", "--html", str(page)
    )
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first == str(PROMPT + NEW)
    tree = from_json(last)
    assert tree.to_json() == last
    assert (tree.policy, len(tree.executors)) == ("split", 2)
    assert held(tree, 0)["weight"] > 0  # the script's names still live
    (decode,) = [phase for phase in tree.phases if phase.name == "decode"]
    assert [each.nbytes for each in decode.held[1] if each.residency == "kv_cache"] == [16 * CACHE_NBYTES]
    tags = Tags()
    tags.feed(page.read_text())
    assert "svg" in tags.names
    assert "script" not in tags.names
    assert tags.fetched == []


def test_the_command_needs_no_executor_and_explains_what_ran_before_a_failure(tmp_path):
    script = SCRIPT + "import remora; remora.disconnect()\nraise SystemExit(7)\n"
    done = explained(tmp_path, script=script)
    assert done.returncode == 7, done.stderr
    assert done.stdout == f"{PROMPT + NEW}\n"
    assert "Policy semantic, 1 executor" in done.stderr
    assert re.search(r"decode: 5 steps, 5 B moved", done.stderr)
    assert "executor 0 held weight" in done.stderr


def test_wrong_placements_are_one_line(tmp_path):
    done = explained(tmp_path, "--placement", "best")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"remora explain: no placement 'best'; there are semantic, .*\n", done.stderr)
