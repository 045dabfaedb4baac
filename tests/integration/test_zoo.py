"""Hugging Face architectures on the executor, bit by bit as local: some always, others by a fresh seed.

`remora bench zoo` checks all of them; `remora bench zoo --only NAME` one.
"""

from __future__ import annotations

import os
from types import ModuleType

import pytest
import torch

from remora.bench import zoo
from remora.bench.harness import Options, Report
from remora.bench.zoo_check import EQUAL, Result, check
from remora.bench.zoo_specimens import specimens
from remora.errors import UsageError

SEED = int(os.environ["ZOO_SEED"])  # a fresh one for each run, see tests/conftest.py
WAIT = {"swin", "swinv2"}  # their pooling's as_strided_ in training is refused so far
NAMES = [name for name in zoo.quick(SEED, extra=8) if name not in WAIT]


@pytest.mark.filterwarnings("ignore")  # the models' own, about tiny configurations
@pytest.mark.parametrize("name", NAMES)
def test_forward_generate_and_a_training_step_are_equal(connected: ModuleType, name: str) -> None:
    specimen = specimens()[name]
    result = check(specimen)
    assert result.ok, f"seed {SEED}: {result}"
    assert result.forward == result.train == EQUAL
    assert (result.generate == EQUAL) == (specimen.generates is not None)


def test_a_difference_is_found(connected: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from remora.bench import zoo_check

    class Off(zoo_check.Pair):
        def __init__(self, specimen, device):
            super().__init__(specimen, device)
            with torch.no_grad():
                next(self.there.parameters())[5, 0] += 1e-6

    monkeypatch.setattr(zoo_check, "Pair", Off)
    result = check(specimens()["gpt2"])
    assert not result.ok
    assert "differs in" in result.forward
    assert "differs in" in result.train


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the child must inherit the stand-in")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_ends_the_child_or_hangs_is_named_and_the_rest_goes_on(executor, monkeypatch) -> None:
    def stand_in(specimen):
        if specimen.name == "vit":
            os._exit(3)
        if specimen.name == "t5":
            import time

            time.sleep(60)
        return Result(specimen.name, EQUAL)

    monkeypatch.setattr(zoo, "check", stand_in)
    monkeypatch.setattr(zoo, "TIMEOUT_S", 2.0)
    names = ["bert", "vit", "gpt2", "t5", "llama"]
    results = zoo.check_all(names, executor.url, Report("zoo"))
    assert [result.name for result in results] == names
    assert [result.ok for result in results] == [True, False, True, False, True]
    assert "process ended" in results[1].forward
    assert "nothing in 2 s" in results[3].forward


def test_there_are_more_than_forty_and_an_unknown_one_is_refused() -> None:
    assert len(zoo.chosen(Options())) >= zoo.ENOUGH
    with pytest.raises(UsageError, match="no 'nonsense'"):
        zoo.chosen(Options(only="nonsense"))
