"""Text form of a graph: one node a line; prints and parses back to an equal graph.

    %0 = aten.add.Tensor($0, $1, alpha=int)
    %1 = aten.cat.default([%0, $2], int) {0,2,1}
    %2 = aten.fill_.Scalar(%1, @complex:"(1+2j)")

`%r` is row r (`%r.k` its output k), `$n` slot n, `int`/`float` a hole, `@dtype:float32` a symbol
(quoted unless it is a word), `{…}` the layouts of outputs that are not contiguous.
"""

from __future__ import annotations

import json
import re

from remora.ir.graph import Template
from remora.ir.node import Arg, Const, Hole, Items, Node, Ref, Slot, Symbol

_TOKEN = re.compile(
    r"""\s*(?:(?P<ref>%\d+(?:\.\d+)?)|(?P<slot>\$\d+)|(?P<symbol>@\w+:(?:\w+|"(?:[^"\\]|\\.)*"))"""
    r"""|(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z_][\w.]*)|(?P<punct>[()\[\],={}|])|(?P<number>\d+))""",
    re.ASCII,
)
_WORD = re.compile(r"\w+", re.ASCII)


def print_template(template: Template) -> str:
    """One line a node, ending in a newline."""
    return "".join(f"%{row} = {_node(node)}\n" for row, node in enumerate(template.nodes))


def _node(node: Node) -> str:
    args = [_arg(arg) for arg in node.args] + [f"{name}={_arg(arg)}" for name, arg in node.kwargs]
    text = f"{node.op}({', '.join(args)})"
    if node.layouts:
        text += " {" + "|".join(",".join(map(str, layout)) for layout in node.layouts) + "}"
    return text


def _arg(arg: Arg) -> str:
    match arg:
        case Ref(row, out):
            return f"%{row}.{out}" if out else f"%{row}"
        case Slot(index):
            return f"${index}"
        case Hole(kind):
            return kind
        case Const(value):
            return json.dumps(value) if isinstance(value, str) else str(value)
        case Symbol(kind, name):
            return f"@{kind}:{name if _WORD.fullmatch(name) else json.dumps(name)}"
        case Items(items):
            return "[" + ", ".join(_arg(item) for item in items) + "]"


def parse_template(text: str) -> Template:
    """Inverse of `print_template`.

    Raises:
        ValueError: the text is no graph; names the line.
        ProtocolError: the graph breaks a rule.
    """
    nodes: list[Node] = []
    for number, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        head, equals, body = line.partition(" = ")
        if not equals or head.strip() != f"%{len(nodes)}":
            raise ValueError(f"line {number + 1}: expected '%{len(nodes)} = op(…)', got {line!r}")
        try:
            parser = _Parser(body, number + 1)
            nodes.append(parser.node())
        except RecursionError:
            raise ValueError(f"line {number + 1}: lists nest too deep") from None
        if parser.kind != "end":
            raise ValueError(f"line {number + 1}: {parser.token!r} after the node's end")
    try:
        return Template.decode(Template(tuple(nodes)).body)
    except OverflowError as error:
        raise ValueError(f"a number is too large: {error}") from None


def print_node(node: Node) -> str:
    """A node as its line has it, without the row's number."""
    return _node(node)


def parse_node(text: str, line: int = 1) -> tuple[Node, str]:
    """Reads a node from the start of a text; returns it and what stands behind the `|` that ends it, or ''.

    Raises:
        ValueError: there is no node; names `line`.
    """
    try:
        parser = _Parser(text, line)
        node = parser.node()
    except RecursionError:
        raise ValueError(f"line {line}: lists nest too deep") from None
    if parser.kind == "end":
        return node, ""
    if parser.token != "|":
        raise ValueError(f"line {line}: {parser.token!r} after the node's end")
    return node, text[parser.position :]


class _Parser:
    def __init__(self, text: str, line: int) -> None:
        self.text, self.line, self.position = text, line, 0
        self.kind, self.token = "", ""
        self.advance()

    def advance(self) -> None:
        if not self.text[self.position :].strip():
            self.kind, self.token = "end", ""
            return
        match = _TOKEN.match(self.text, self.position)
        if match is None or match.lastgroup is None:
            raise ValueError(f"line {self.line}: cannot read {self.text[self.position :]!r}")
        self.kind, self.token = match.lastgroup, match.group(match.lastgroup)
        self.position = match.end()

    def take(self, token: str) -> None:
        if self.token != token:
            raise ValueError(f"line {self.line}: expected {token!r}, got {self.token!r}")
        self.advance()

    def node(self) -> Node:
        op = self.token
        self.advance()
        self.take("(")
        args: list[Arg] = []
        kwargs: list[tuple[str, Arg]] = []
        while self.token != ")":
            if self.kind == "word" and self.text[self.position :].startswith("="):
                name = self.token
                self.advance()
                self.take("=")
                kwargs.append((name, self.arg()))
            else:
                args.append(self.arg())
            if self.token != ")":
                self.take(",")
        self.take(")")
        layouts = self.layouts() if self.token == "{" else ()
        return Node(op, tuple(args), tuple(kwargs), layouts)

    def arg(self) -> Arg:
        kind, token = self.kind, self.token
        self.advance()
        if kind == "ref":
            row, _, out = token[1:].partition(".")
            return Ref(int(row), int(out or 0))
        if kind == "slot":
            return Slot(int(token[1:]))
        if kind == "symbol":
            name, _, value = token[1:].partition(":")
            return Symbol(name, json.loads(value) if value.startswith('"') else value)
        if kind == "string":
            return Const(json.loads(token))
        if token in ("int", "float"):
            return Hole(token)
        if token in ("None", "True", "False"):
            return Const({"None": None, "True": True, "False": False}[token])
        if token == "[":
            items: list[Arg] = []
            while self.token != "]":
                items.append(self.arg())
                if self.token != "]":
                    self.take(",")
            self.take("]")
            return Items(tuple(items))
        raise ValueError(f"line {self.line}: {token!r} is no argument")

    def layouts(self) -> tuple[tuple[int, ...], ...]:
        self.take("{")
        layouts: list[tuple[int, ...]] = []
        current: list[int] = []
        while True:
            if self.kind == "number":
                current.append(int(self.token))
                self.advance()
                if self.token == ",":
                    self.advance()
            elif self.token in ("|", "}"):
                layouts.append(tuple(current))
                current = []
                last = self.token == "}"
                self.advance()
                if last:
                    return tuple(layouts)
            else:
                raise ValueError(f"line {self.line}: {self.token!r} in a layout")
