"""Recorded graphs of real programs: what annotation says of them changes only on purpose.

`remora bench semantics --write tests/golden/annotated` makes them anew.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from remora.ir.annotated import Graph, Phase, Residency, Row, Stage
from remora.ir.annotated_text import parse_graph, print_graph
from remora.semantics.annotate import annotate

HERE = Path(__file__).parent / "annotated"
NAMES = sorted(path.stem for path in HERE.glob("*.captured"))


def _captured(name: str) -> Graph:
    return parse_graph((HERE / f"{name}.captured").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_graph_prints_byte_for_byte(name: str) -> None:
    for suffix in ("captured", "annotated"):
        text = (HERE / f"{name}.{suffix}").read_text()
        assert print_graph(parse_graph(text)) == text


@pytest.mark.parametrize("name", NAMES)
def test_annotation_is_the_recorded_one(name: str) -> None:
    annotated, _ = annotate(_captured(name))
    assert print_graph(annotated) == (HERE / f"{name}.annotated").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_annotating_again_changes_nothing(name: str) -> None:
    once, memory = annotate(_captured(name))
    again, learned = annotate(_captured(name), memory)
    assert _said(again) == _said(once)
    assert learned == memory
    assert once.stage is Stage.ANNOTATED


def _said(graph: Graph) -> list[tuple[object, ...]]:
    items = [item.meaning for item in (*graph.rows, *graph.slots)]
    return [(each.residency, each.phase, each.modality, each.layer) for each in items]


def test_the_recorded_graphs_are_what_they_are_called() -> None:
    """Not by the recorder's word: counted by hand from the programs."""
    rows = {name: annotate(_captured(name))[0].rows for name in NAMES}
    n_cache = {name: _count(rows[name], Residency.KV_CACHE) for name in NAMES}
    assert n_cache["gpt2_decode"] == 2  # keys and values of one layer
    assert n_cache["llama_static_decode"] == 2
    assert n_cache["mlp_adam_step"] == n_cache["vit_forward"] == 0
    phases = {name: {row.meaning.phase for row in rows[name]} for name in NAMES}
    assert phases["mlp_adam_step"] == {Phase.FORWARD, Phase.BACKWARD, None}
    assert phases["vit_forward"] == {Phase.FORWARD}
    assert Phase.DECODE in phases["t5_decode"] & phases["whisper_decode"] & phases["gpt2_decode"]
    slots = Counter(slot.meaning.residency for slot in annotate(_captured("mlp_adam_step"))[0].slots)
    assert slots == {Residency.WEIGHT: 4, Residency.INPUT: 2, Residency.OPTIMIZER_STATE: 8}


def _count(rows: tuple[Row, ...], residency: Residency) -> int:
    return sum(row.meaning.residency is residency for row in rows)
