"""The explanation's three forms: text (golden), JSON (round trip), HTML (well-formed, escaped, fetches nothing)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from remora.plan.explain import (
    CLIENT,
    Block,
    Choice,
    Edge,
    Executor,
    Explanation,
    Held,
    Phase,
    Picture,
    Template,
    Transfer,
    from_json,
)
from remora.plan.explain_text import COLUMNS, amount, duration, fold, plain

GOLDEN = Path(__file__).parents[1] / "golden" / "explanation.txt"
NASTY = '</title><script>alert("x")</script>&amp; \'\x1b[2J\n\u202e\udc80 %s {0}'


def gpt2() -> Explanation:
    """Two executors that hold half of GPT-2 each, and what moves between them."""
    layers = tuple(f"transformer.h.{layer}" for layer in range(12))
    return Explanation(
        policy="semantic",
        executors=(
            Executor(
                "http://10.0.0.2:8470",
                "cpu",
                2 << 30,
                (
                    Held("weight", 522_000_000, 148, ("transformer.wte", *layers)),
                    Held("kv_cache", 37_748_736, 24, layers),
                ),
            ),
            Executor("http://10.0.0.3:8470", "NVIDIA H200"),
        ),
        phases=(
            Phase("prefill", 1, 0.412, 0.398, (Transfer(CLIENT, 0, "input", 4096, 1, 0.00005, 0.00006),)),
            Phase(
                "decode",
                511,
                20.9,
                21.4,
                held=((Held("weight", 522_000_000, 148), Held("kv_cache", 37_748_736, 24)), ()),
                held_at=256,
                computed_s=20.1,
            ),
            Phase("forward", 3, None, 0.05, (Transfer(0, 1, "activation", 9_437_184, 3, 0.0755, 0.0799),)),
        ),
        choices=(
            Choice(
                "decoder, cache and weights",
                "executor 0",
                "the cache grows where the attention over it runs, so nothing but a token travels in a step",
                0.0409,
                "the cache on executor 1",
                0.656,
            ),
            Choice("logits", "last position only", "only the last position is read"),
        ),
        templates=(
            Template("c0ffee0123456789", "prefill", 487, (0,), 1, 0.412, 0.03, 0.398, 0.081),
            Template("beef0123456789ab", "decode", 487, (0, 1), 511, 0.0409, 0.002, 0.0419, 0.079),
        ),
        picture=Picture(
            ("embed", "0", "1", "head"),
            (
                Block(0, 0, "weight", 154_000_000, 3, "transformer.wte"),
                Block(1, 0, "weight", 28_000_000, 40, "transformer.h.0"),
                Block(1, 0, "kv_cache", 6_291_456, 4, "transformer.h.0.attn"),
                Block(2, 1, "weight", 28_000_000, 40, "transformer.h.1"),
            ),
            (
                Edge(CLIENT, 0, 0, 0, "input", 8),
                Edge(0, 1, 1, 2, "activation", 3072),
                Edge(0, 1, 1, 2, "kv_cache", 6_291_456),
            ),
            "a step of decode",
        ),
        notes=("executor 1 was not needed",),
    )


def nasty() -> Explanation:
    """The same with hostile text wherever a user's own text can come."""
    tree = gpt2()
    first = replace(tree.executors[0], address=NASTY, device=NASTY, held=(Held(NASTY, 1, 1, (NASTY, NASTY)),))
    return replace(
        tree,
        policy=NASTY,
        executors=(first, tree.executors[1]),
        phases=(Phase(NASTY, 1, transfers=(Transfer(0, 1, NASTY, 5, 2),), held=((Held(NASTY, 1, 1),), ())),),
        choices=(Choice(NASTY, NASTY, NASTY, 1.0, NASTY, 2.0),),
        templates=(Template(NASTY, NASTY, 1, (0,), 1),),
        picture=Picture((NASTY,), (Block(0, 0, NASTY, 1, 1, NASTY),), (Edge(0, 0, 1, 0, NASTY, 1),), NASTY),
        notes=(NASTY,),
    )


def test_text_is_golden() -> None:
    assert str(gpt2()) == GOLDEN.read_text()


@pytest.mark.parametrize("tree", [gpt2(), nasty()], ids=["gpt2", "nasty"])
def test_text_fits_and_holds_nothing_that_a_terminal_obeys(tree: Explanation) -> None:
    text = str(tree)
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert all(char.isprintable() or char == "\n" for char in text)


@pytest.mark.parametrize("tree", [gpt2(), nasty(), Explanation("local", ())], ids=["gpt2", "nasty", "empty"])
def test_json_round_trip(tree: Explanation) -> None:
    text = tree.to_json()
    assert "\n" not in text
    assert from_json(text) == tree
    assert json.loads(text)["policy"] == tree.policy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "Expected `object`"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ('{"policy": "x", "executors": [], "phases": [{"name": "p", "steps": "many"}]}', r"\$.phases\[0\].steps"),
        ('{"policy": "x", "executors": [], "templates": [{"id": "t", "phase": "", "rows": 1, "executors": [3], '
         '"runs": 1}]}', "names executor 3 of 0"),
        ('{"policy": "x", "executors": [], "choices": [{"subject": "c", "chosen": "", "reason": "", '
         '"predicted_s": NaN}]}', "choice 'c': nan s"),
    ],
)  # fmt: skip
def test_json_that_is_no_explanation_says_where(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"not an explanation: .*{says}"):
        from_json(text)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"picture": Picture(("a",), (Block(1, 0, "weight", 1, 1),))}, "column 1 of 1"),
        ({"picture": Picture(("a",), (Block(0, CLIENT, "weight", 1, 1),))}, "executor -1 of 2"),
        ({"picture": Picture(("a",), (), (Edge(0, 0, 2, 0, "weight", 1),))}, "executor 2 of 2"),
        ({"phases": (Phase("decode", 1, transfers=(Transfer(0, 5, "weight", 1, 1),)),)}, "executor 5 of 2"),
        ({"phases": (Phase("decode", 1, -1.0),)}, "-1.0 s"),
        ({"phases": (Phase("decode", 1, computed_s=-2.0),)}, "-2.0 s"),
        ({"phases": (Phase("decode", 1, held=((),)),)}, "what 1 executors of 2 held"),
    ],
)
def test_a_tree_that_cannot_be_is_refused(change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(gpt2(), **change)


class _Page(HTMLParser):
    """Checks that every tag closes in order, and collects what there is."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def parse(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


@pytest.mark.parametrize("tree", [gpt2(), nasty(), Explanation("local", ())], ids=["gpt2", "nasty", "empty"])
def test_html_is_well_formed_and_fetches_nothing(tree: Explanation) -> None:
    html = tree.to_html()
    page = parse(html)
    html.encode()  # no lone surrogates
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "image", "use", "foreignobject", "a"}
    for _, attributes in page.tags:
        assert not {"src", "href", "xlink:href"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in re.sub(r"url\(#head-[0-9a-f]+\)", "", html)
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'\"" in html


def test_html_draws_blocks_and_bytes() -> None:
    page = parse(gpt2().to_html())
    said = " ".join(page.said)
    paths = [a for tag, a in page.tags if tag == "path" and "marker-end" in a]
    assert len(paths) == 3
    assert {"client", "executor 0", "executor 1", "embed", "head"} <= {text.strip() for text in page.said}
    assert "6.0 MiB kv_cache, 1 transfer a step, 0 to 1" in said
    blocks = [a for tag, a in page.tags if tag == "rect" and a.get("rx")]
    assert len(blocks) == 4
    spots = {(a["x"], a["y"]) for a in blocks}
    assert len(spots) == 4  # none over another


def test_hostile_text_stays_text() -> None:
    said = "".join(parse(nasty().to_html()).said)
    assert '</title><script>alert("x")</script>&amp; \'\\x1b[2J\\n\\u202e\\udc80 %s {0}' in said


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (3072, "3.0 KiB"), (1024**2 - 1, "1.0 MiB"), (5 << 40, "5.0 TiB")],
)
def test_amounts(nbytes: int, text: str) -> None:
    assert amount(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (5e-8, "50 ns"),
        (4.5e-5, "45 us"),
        (0.01234, "12.3 ms"),
        (0.9999, "1 s"),
        (4321, "4321 s"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_long_text_loses_its_middle() -> None:
    assert plain("a" * 50 + "b" * 50, 9) == "aaaa…bbbb"
    assert plain("short", 9) == "short"


def test_names_of_repeated_blocks_are_folded() -> None:
    names = [
        "wte",
        "h.0.attn",
        "h.1.attn",
        "h.2.attn",
        "h.0.mlp",
        "h.4.mlp",
        "fc1",
        "fc2",
        "",
        "h.7",
        "a\nh.1",
    ]
    assert fold(names) == ["wte", "h.{0..2}.attn", "h.{0,4}.mlp", "fc1", "fc2", "h.7", "a\nh.1"]
