"""Golden graphs: small captured graphs of real programs, and what annotation says of each.

`remora bench semantics --write FOLDER` makes them anew; tests/golden holds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from remora.bench.semantics_cases import (
    AUDIO,
    TEXT,
    VISION,
    WHOLE,
    Case,
    adam,
    forward,
    generated,
    perceptron,
    points,
    trained,
)
from remora.bench.watch import Plan
from remora.ir.annotated import Graph, Meaning, Outside, Phase, Row
from remora.ir.annotated_text import print_graph
from remora.semantics.annotate import annotate

ONE_LAYER = {"num_hidden_layers": 1}
Pick = Callable[[list[Plan]], list[Plan]]


def decodes(n: int) -> Pick:
    """The last plans of a decode step that have its attention."""

    def pick(plans: list[Plan]) -> list[Plan]:
        found = [
            plan
            for plan in plans
            if any(row.meaning.phase is Phase.DECODE and _is_attention(row) for row in plan.annotated.rows)
        ]
        return found[-n:]

    return pick


def _is_attention(row: Row) -> bool:
    return row.node.op.split(".")[1] in ("scaled_dot_product_attention", "softmax", "_softmax")


def pair(plans: list[Plan]) -> list[Plan]:
    """The two templates that came most often: of them the steps of a padded batch, or of beams, are made."""
    uses: Counter[str] = Counter()
    last: dict[str, Plan] = {}
    for plan in plans:
        uses[plan.captured.template] += plan.uses
        last[plan.captured.template] = plan
    often = {template for template, _ in uses.most_common(2)}
    return [last[template] for template in last if template in often]


def last(plans: list[Plan]) -> list[Plan]:
    return plans[-1:]


GOLDEN: dict[str, tuple[Case, Pick]] = {
    "gpt2_decode": (Case("", generated("gpt2", WHOLE, changes=ONE_LAYER), ""), decodes(1)),
    "llama_static_decode": (
        Case("", generated("llama", WHOLE, changes=ONE_LAYER, cache_implementation="static"), ""),
        decodes(1),
    ),
    "gpt2_beams": (Case("", generated("gpt2", WHOLE, changes=ONE_LAYER, num_beams=2), ""), pair),
    "gpt2_padded": (Case("", generated("gpt2", WHOLE, changes=ONE_LAYER, padded=True), ""), pair),
    "t5_decode": (
        Case("", generated("t5", {"": TEXT}, changes={"num_layers": 1, "num_decoder_layers": 1}), ""),
        decodes(1),
    ),
    "whisper_decode": (
        Case("", generated("whisper", {"": AUDIO}, changes={"encoder_layers": 1, "decoder_layers": 1}), ""),
        decodes(1),
    ),
    "vit_forward": (Case("", forward("vit", {"": VISION}, **ONE_LAYER), ""), last),
    "mlp_adam_step": (Case("", trained(perceptron, points, adam), ""), last),
}


def write(folder: Path, url: str) -> list[Path]:
    """NAME.captured and NAME.annotated of each; returns the files."""
    from remora.bench.semantics import check

    written: list[Path] = []
    for name, (case, pick) in GOLDEN.items():
        _, _, plans = check(case, url)
        chosen = pick(plans)
        for number, plan in enumerate(chosen):
            graph = plain(plan.captured)
            stem = name if len(chosen) == 1 else f"{name}_{number + 1}"
            for suffix, each in (("captured", graph), ("annotated", annotate(graph)[0])):
                path = folder / f"{stem}.{suffix}"
                path.write_text(print_graph(each))
                written.append(path)
    return written


def plain(graph: Graph) -> Graph:
    """The graph without what differs between machines and runs: source lines, numbers of memories, longer stories."""
    storages: dict[int, int] = {}

    def outside(slot: Outside) -> Outside:
        known = slot.meaning
        meaning = Meaning(known.residency, known.phase, known.modality, known.layer)
        storage = storages.setdefault(slot.storage, len(storages))
        return replace(slot, storage=storage, meaning=meaning)

    def row(row: Row) -> Row:
        return replace(row, source="")

    return replace(graph, slots=tuple(map(outside, graph.slots)), rows=tuple(map(row, graph.rows)))
