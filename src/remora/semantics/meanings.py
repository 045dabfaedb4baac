"""What a recogniser said, by row and slot, and how the words of several are put together."""

from __future__ import annotations

from dataclasses import dataclass, field

from remora.ir.annotated import NOTHING, Meaning, Modality, Phase, Residency


@dataclass(slots=True)
class Meanings:
    """Rows and slots by number. A recogniser makes its own and fills it; what others said it only reads."""

    rows: dict[int, Meaning] = field(default_factory=dict)
    slots: dict[int, Meaning] = field(default_factory=dict)

    def row(self, number: int) -> Meaning:
        return self.rows.get(number, NOTHING)

    def slot(self, number: int) -> Meaning:
        return self.slots.get(number, NOTHING)


def joined(first: Meaning, second: Meaning) -> Meaning:
    """Both; where they differ, the first one's word, without the second one's evidence if it adds nothing."""
    if first is NOTHING:
        return second
    residency: Residency | None = first.residency or second.residency
    phase: Phase | None = first.phase or second.phase
    modality: Modality | None = first.modality or second.modality
    layer = first.layer if first.layer is not None else second.layer
    if (residency, phase, modality, layer) == (first.residency, first.phase, first.modality, first.layer):
        return first
    evidence = first.evidence + tuple(said for said in second.evidence if said not in first.evidence)
    return Meaning(residency, phase, modality, layer, evidence)


def add(known: Meanings, said: Meanings) -> None:
    """Takes in what a recogniser said, behind what is known."""
    for mine, theirs in ((known.rows, said.rows), (known.slots, said.slots)):
        for number, meaning in theirs.items():
            mine[number] = joined(mine.get(number, NOTHING), meaning)
