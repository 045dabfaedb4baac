"""The wiring digest: equal for what is wired alike, whatever the process's numbers are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from remora.bench.tap import Wiring
from remora.capture.value import OUT_BITS, Value

Slot = tuple[int, int, int]  # segment, row, out


def segment(number: int, template: bytes, slots: list[Slot]) -> Any:
    values = [Value(None, at, row << OUT_BITS | out, None) for at, row, out in slots]
    captured = SimpleNamespace(template=SimpleNamespace(id=template))
    return SimpleNamespace(number=number, captured=captured, slots=values)


def digest(*segments: tuple[int, bytes, list[Slot]]) -> str:
    wiring = Wiring()
    for one in segments:
        wiring(segment(*one))
    assert wiring.segments == len(segments)
    return wiring.digest


PROGRAM = digest((7, b"t", [(3, 0, 0), (5, 0, 0)]), (8, b"t", [(3, 0, 0), (7, 2, 1)]))


def test_process_numbers_do_not_matter() -> None:
    assert digest((107, b"t", [(90, 0, 0), (95, 0, 0)]), (108, b"t", [(90, 0, 0), (107, 2, 1)])) == PROGRAM


def test_another_template_row_output_distance_or_upload_matters() -> None:
    first = (7, b"t", [(3, 0, 0), (5, 0, 0)])
    others = [
        digest(first, (8, b"u", [(3, 0, 0), (7, 2, 1)])),
        digest(first, (8, b"t", [(3, 0, 0), (7, 3, 1)])),
        digest(first, (8, b"t", [(3, 0, 0), (7, 2, 0)])),
        digest(first, (9, b"t", [(3, 0, 0), (7, 2, 1)])),
        digest(first, (8, b"t", [(5, 0, 0), (7, 2, 1)])),
        digest(first),
    ]
    assert PROGRAM not in others
    assert len(set(others)) == len(others)
