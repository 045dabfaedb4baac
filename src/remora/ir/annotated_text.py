"""Text form of an annotated graph: one slot or row a line; prints and parses back to an equal graph.

    graph ANNOTATED template="9c0f" holes=[-2, 0.5] keep=%1 wants=%2
    $0 = float32[1,4,8,16] storage=0 age=1 reads=1 from="aten.cat.default([$3, %7], int)" in="9c0f" kv_cache "cache: …"
    $1 = float32[16,16] storage=1 uploaded weight layer=0 "weight: …"
    %0 = aten.linear.default($2, $1) | float32[1,1,16] module="model.layers.0.attn.k" source="a.py:3" decode "phase: …"
    %1 = aten.cat.default([$0, %0], int) | float32[1,5,8,16] kv_cache "cache: …"
    %2 = aten.index_copy_.default($4, int, $5, %0) | float32[1,8,8,16]<0 writes=0 executor=1

Behind the `|` of a row stand its outputs: dtype and sizes, `?` for one that is no tensor or of unknown shape,
`<n` for one that lies in the memory of tensor input n. `float32:2[…]` has elements of 2 bytes instead of 4.
Then `writes`, `module`, `source`, `executor`; last, residency, phase, modality, layer and the evidence, quoted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from remora.ir.annotated import Facts, Graph, Meaning, Modality, Outside, Phase, Residency, Row, Stage
from remora.ir.node import Node
from remora.ir.text import parse_node, print_node

MAX_DIMS = 64
_WORDS: dict[str, tuple[str, Any]] = {
    **{kind.value: ("residency", kind) for kind in Residency},
    **{kind.value: ("phase", kind) for kind in Phase},
    **{kind.value: ("modality", kind) for kind in Modality},
}
_TOKEN = re.compile(r'\s*(?:(?P<name>\w+)=)?(?P<value>"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[^\s"]+)', re.ASCII)
_FACTS = re.compile(r"(?P<dtype>\w+)(?::(?P<itemsize>\d+))?\[(?P<shape>[\d,]*)\]", re.ASCII)
_OUTPUT = re.compile(r"%(\d+)(?:\.(\d+))?", re.ASCII)
_DIGITS = re.compile(r"\d+", re.ASCII)


def print_graph(graph: Graph) -> str:
    """One line for the graph, one for each slot, one for each row, each ending in a newline.

    Raises:
        ValueError: some rows have an executor and some have none.
    """
    if graph.executors and len(graph.executors) != len(graph.rows):
        raise ValueError(f"{len(graph.rows)} rows, {len(graph.executors)} executors")
    lines = [_head(graph)]
    lines += [f"${number} = {_outside(slot)}" for number, slot in enumerate(graph.slots)]
    for number, row in enumerate(graph.rows):
        executor = graph.executors[number] if graph.executors else None
        lines.append(f"%{number} = {_row(row, executor)}")
    return "".join(f"{line}\n" for line in lines)


def _head(graph: Graph) -> str:
    parts = ["graph", graph.stage.name]
    parts += [f"template={json.dumps(graph.template)}"] if graph.template else []
    if graph.holes:
        parts.append(f"holes={json.dumps(graph.holes)}")
    parts += [
        f"{name}={','.join(f'%{row}.{out}' if out else f'%{row}' for row, out in sorted(outputs))}"
        for name, outputs in (("keep", graph.keep), ("wants", graph.wants))
        if outputs
    ]
    return " ".join(parts)


def _outside(slot: Outside) -> str:
    parts = [_facts(slot.facts), f"storage={slot.storage}"]
    parts += [word for word in ("uploaded", "written") if getattr(slot, word)]
    parts += [f"{name}={count}" for name in ("age", "reads") if (count := getattr(slot, name))]
    if slot.made_by is not None:
        node, out = slot.made_by
        parts.append(f"from={json.dumps(print_node(node))}")
        parts += [f"out={out}"] if out else []
    parts += [f"in={json.dumps(slot.made_in)}"] if slot.made_in else []
    return " ".join((*parts, *_meaning(slot.meaning)))


def _row(row: Row, executor: int | None) -> str:
    parts = [print_node(row.node), "|"]
    for facts, share in zip(row.outs, row.shares, strict=True):
        parts.append(("?" if facts is None else _facts(facts)) + ("" if share is None else f"<{share}"))
    parts += [f"writes={','.join(map(str, row.writes))}"] if row.writes else []
    parts += [f"{name}={json.dumps(text)}" for name in ("module", "source") if (text := getattr(row, name))]
    parts += [f"executor={executor}"] if executor is not None else []
    return " ".join((*parts, *_meaning(row.meaning)))


def _facts(facts: Facts) -> str:
    size = "" if facts.itemsize == _itemsize(facts.dtype) else f":{facts.itemsize}"
    return f"{facts.dtype}{size}[{','.join(map(str, facts.shape))}]"


def _itemsize(dtype: str) -> int:
    """Bytes of an element, as the name of the dtype tells: float32 4, float8_e4m3fn 1, bool 1."""
    digits = _DIGITS.search(dtype)
    return max(1, int(digits.group()[:6]) // 8) if digits else 1


def _meaning(meaning: Meaning) -> list[str]:
    kinds = (meaning.residency, meaning.phase, meaning.modality)
    parts = [str(kind) for kind in kinds if kind is not None]
    parts += [f"layer={meaning.layer}"] if meaning.layer is not None else []
    return parts + [json.dumps(sentence) for sentence in meaning.evidence]


def parse_graph(text: str) -> Graph:
    """Inverse of `print_graph`. Checks form, not stage rules: ir/stages.py does.

    Raises:
        ValueError: the text is no graph; names the line.
    """
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError("line 1: expected 'graph STAGE', got nothing")
    number, head = lines[0]
    whole = _parse_head(head, number)
    slots: list[Outside] = []
    rows: list[Row] = []
    executors: list[int] = []
    for number, line in lines[1:]:
        name, equals, body = line.partition(" = ")
        if equals and name == f"${len(slots)}" and not rows:
            slots.append(_parse_outside(body, number))
        elif equals and name == f"%{len(rows)}":
            row, executor = _parse_row(body, number)
            rows.append(row)
            executors += [] if executor is None else [executor]
        else:
            raise ValueError(
                f"line {number}: expected slot {len(slots)} or row {len(rows)}, got {line[:80]!r}"
            )
    if len(executors) not in (0, len(rows)):
        raise ValueError(f"line {number}: {len(rows)} rows, {len(executors)} executors")
    return replace(whole, rows=tuple(rows), slots=tuple(slots), executors=tuple(executors))


@dataclass(frozen=True)
class _Token:
    name: str
    value: str
    line: int

    def wrong(self, wanted: str) -> ValueError:
        shown = f"{self.name}={self.value}" if self.name else self.value
        return ValueError(f"line {self.line}: {shown[:80]!r} is no {wanted}")

    def number(self) -> int:
        if not _DIGITS.fullmatch(self.value) or len(self.value) > 18:
            raise self.wrong("number")
        return int(self.value)

    def string(self) -> str:
        if not self.value.startswith('"'):
            raise self.wrong("quoted text")
        return str(self.load())

    def load(self) -> Any:
        try:
            return json.loads(self.value)
        except (ValueError, RecursionError):
            raise self.wrong("JSON") from None


def _tokens(text: str, line: int) -> list[_Token]:
    found: list[_Token] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"line {line}: cannot read {text[at : at + 80]!r}")
        found.append(_Token(match["name"] or "", match["value"], line))
        at = match.end()
    return found


def _parse_head(text: str, line: int) -> Graph:
    first, *tokens = _tokens(text, line)
    if first.value != "graph" or not tokens or tokens[0].value not in Stage.__members__:
        raise ValueError(f"line {line}: expected 'graph STAGE', got {text[:80]!r}")
    holes: tuple[int | float, ...] = ()
    template = ""
    outputs: dict[str, frozenset[tuple[int, int]]] = {"keep": frozenset(), "wants": frozenset()}
    for token in tokens[1:]:
        if token.name == "holes":
            loaded = token.load()
            if not all(type(hole) in (int, float) for hole in loaded):
                raise token.wrong("list of numbers")
            holes = tuple(loaded)
        elif token.name == "template":
            template = token.string()
        elif token.name in outputs:
            matches = [_OUTPUT.fullmatch(part) for part in token.value.split(",")]
            if any(match is None for match in matches):
                raise token.wrong("list of outputs")
            outputs[token.name] = frozenset((int(m[1]), int(m[2] or 0)) for m in matches if m is not None)
        else:
            raise token.wrong("part of a graph")
    stage = Stage[tokens[0].value]
    return Graph((), (), holes, outputs["keep"], outputs["wants"], stage, template=template)


def _parse_outside(text: str, line: int) -> Outside:
    tokens = _tokens(text, line)
    facts, share = _parse_output(tokens[0])
    if facts is None or share is not None:
        raise tokens[0].wrong("tensor")
    found: dict[str, Any] = {}
    node: Node | None = None
    out = 0

    def take(token: _Token) -> bool:
        nonlocal node, out
        if token.name in ("storage", "age", "reads"):
            found[token.name] = token.number()
        elif token.name == "from":
            node, rest = parse_node(token.string(), line)
            if rest:
                raise token.wrong("node")
        elif token.name == "out":
            out = token.number()
        elif token.name == "in":
            found["made_in"] = token.string()
        elif not token.name and token.value in ("uploaded", "written"):
            found[token.value] = True
        else:
            return False
        return True

    meaning = _parse_meaning(tokens[1:], take)
    if "storage" not in found:
        raise ValueError(f"line {line}: a slot without a storage")
    return Outside(facts, made_by=None if node is None else (node, out), meaning=meaning, **found)


def _parse_row(text: str, line: int) -> tuple[Row, int | None]:
    node, rest = parse_node(text, line)
    tokens = _tokens(rest, line)
    n_outs = 0
    while n_outs < len(tokens) and _is_output(tokens[n_outs]):
        n_outs += 1
    outs = [_parse_output(token) for token in tokens[:n_outs]]
    writes: tuple[int, ...] = ()
    executor: int | None = None
    texts = {"module": "", "source": ""}

    def take(token: _Token) -> bool:
        nonlocal writes, executor
        if token.name == "writes":
            writes = tuple(_Token("", part, line).number() for part in token.value.split(","))
        elif token.name == "executor":
            executor = -1 if token.value == "-1" else token.number()
        elif token.name in texts:
            texts[token.name] = token.string()
        else:
            return False
        return True

    meaning = _parse_meaning(tokens[n_outs:], take)
    facts, shares = tuple(fact for fact, _ in outs), tuple(share for _, share in outs)
    return Row(node, facts, shares, writes, texts["module"], texts["source"], meaning), executor


def _is_output(token: _Token) -> bool:
    return not token.name and (token.value.startswith("?") or _FACTS.match(token.value) is not None)


def _parse_output(token: _Token) -> tuple[Facts | None, int | None]:
    tensor, arrow, place = token.value.partition("<")
    share = _Token("", place, token.line).number() if arrow else None
    if tensor == "?":
        return None, share
    match = _FACTS.fullmatch(tensor)
    if match is None or token.name:
        raise token.wrong("tensor")
    sizes = [_Token("", size, token.line).number() for size in match["shape"].split(",") if match["shape"]]
    if len(sizes) > MAX_DIMS:
        raise token.wrong("tensor")
    itemsize = int(match["itemsize"][:6]) if match["itemsize"] else _itemsize(match["dtype"])
    return Facts(match["dtype"], tuple(sizes), itemsize), share


def _parse_meaning(tokens: Iterable[_Token], take: Callable[[_Token], bool]) -> Meaning:
    """Reads words, layer and evidence; what is none of these is for `take`."""
    found: dict[str, Any] = {}
    evidence: list[str] = []
    for token in tokens:
        if take(token):
            continue
        if token.name == "layer":
            found["layer"] = token.number()
        elif not token.name and token.value in _WORDS:
            kind, value = _WORDS[token.value]
            found[kind] = value
        elif not token.name and token.value.startswith('"'):
            evidence.append(token.string())
        else:
            raise token.wrong("part of a slot or row")
    return Meaning(**found, evidence=tuple(evidence))
