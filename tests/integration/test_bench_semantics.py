"""Annotation of programs that really run, scored as the bench does: a few; `remora bench semantics` has all."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from remora.bench.semantics import check
from remora.bench.semantics_cases import CASES, Case
from remora.ir.annotated import Residency
from remora.ir.annotated_text import parse_graph, print_graph

NAMES = ("llama", "gpt2 beams", "mistral static", "t5", "clip", "dlrm tables", "mamba", "llama adamw")
NEGATIVE = [case for case in CASES if case.group == "negative"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_caches_weights_and_state_is_true(executor: Any, name: str) -> None:
    scores, wrong, plans = _check(next(case for case in CASES if case.name == name), executor)
    for residency in (Residency.KV_CACHE, Residency.OPTIMIZER_STATE):
        score = scores.get(residency)
        assert score is None or (score.wrong, score.missed) == (0, 0), wrong
    assert scores[Residency.WEIGHT].wrong == 0, wrong
    assert scores["layer"].precision == 1.0 if "layer" in scores else True
    for plan in plans:
        assert parse_graph(print_graph(plan.annotated)) == plan.annotated


@pytest.mark.parametrize("case", NEGATIVE, ids=lambda case: case.name)
def test_what_only_looks_like_a_cache_is_none(executor: Any, case: Case) -> None:
    _, wrong, plans = _check(case, executor)
    assert not wrong
    said = {
        item.meaning.residency for plan in plans for item in (*plan.annotated.rows, *plan.annotated.slots)
    }
    assert not said & {Residency.KV_CACHE, Residency.OPTIMIZER_STATE}


def _check(case: Case, executor: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tiny configurations
        return check(case, executor.url)
