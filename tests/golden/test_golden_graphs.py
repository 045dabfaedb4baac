"""Recorded graphs: their text and their ids never change by accident, or every peer's cache goes cold."""

from __future__ import annotations

from pathlib import Path

from remora.ir.text import parse_template, print_template

HERE = Path(__file__).parent


def test_gpt2_attention_prints_byte_for_byte() -> None:
    text = (HERE / "gpt2_attention.graph").read_text()
    assert print_template(parse_template(text)) == text


def test_gpt2_attention_keeps_its_id() -> None:
    template = parse_template((HERE / "gpt2_attention.graph").read_text())
    assert template.id.hex() == "8093352e80f20f072f7b059062b1b83c"
    assert template.n_slots == 10
    assert template.holes.count("float") == 2
