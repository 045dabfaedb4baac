"""A graph as captured, and the template that it becomes: a graph with holes, named by its content."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import msgspec
from blake3 import blake3

from remora.errors import ProtocolError
from remora.ir.node import FREE, Arg, Hole, Items, Node, Ref, Slot

MAX_ROWS = 4096
MAX_NESTING = 8  # of lists in an argument; what walks arguments may recurse

_Nodes = Annotated[tuple[Node, ...], msgspec.Meta(max_length=MAX_ROWS)]
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Nodes)


@dataclass(frozen=True)
class Template:
    """Rows of ops wired by position.

    The id is the blake3 of the canonical encoding: ops, wiring and the kinds of constants, never sizes.
    """

    nodes: tuple[Node, ...]

    @cached_property
    def body(self) -> bytes:
        return _encoder.encode(self.nodes)

    @cached_property
    def id(self) -> bytes:
        return blake3(self.body).digest(16)

    @cached_property
    def holes(self) -> tuple[str, ...]:
        """Kind of each hole, in order."""
        return tuple(arg.kind for node in self.nodes for arg in node.inputs() if isinstance(arg, Hole))

    @cached_property
    def n_slots(self) -> int:
        slots = [arg.index for node in self.nodes for arg in node.inputs() if isinstance(arg, Slot)]
        return max(slots, default=-1) + 1

    @staticmethod
    def decode(body: bytes) -> Template:
        """Parses a body from the wire and checks it.

        Raises:
            ProtocolError: the bytes are no template, or a row refers to a later row.
        """
        try:
            nodes = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"not a template: {error}") from None
        template = Template(nodes)
        check(template)
        return template


def check(template: Template) -> None:
    """Stage rules of a captured graph.

    A row reads only earlier rows, slots are dense, lists nest a few levels, a keyword comes once,
    a layout is an order of dimensions.

    Raises:
        ProtocolError: a rule is broken; names the row.
    """
    seen: set[int] = set()
    for row, node in enumerate(template.nodes):
        _check_form(row, node)
        for arg in node.inputs():
            if isinstance(arg, Ref) and arg.row >= row:
                raise ProtocolError(f"row {row} ({node.op}) reads row {arg.row}, which is not before it")
            if isinstance(arg, Slot):
                seen.add(arg.index)
    if seen and max(seen) + 1 != len(seen):
        raise ProtocolError(f"slots are not dense: {len(seen)} used, highest is {max(seen)}")


def _check_form(row: int, node: Node) -> None:
    level: list[Arg] = [*node.args, *(value for _, value in node.kwargs)]
    for _ in range(MAX_NESTING + 1):
        level = [item for arg in level if isinstance(arg, Items) for item in arg.items]
    if level:
        raise ProtocolError(f"row {row} ({node.op}): a list nests deeper than {MAX_NESTING}")
    if len({name for name, _ in node.kwargs}) != len(node.kwargs):
        raise ProtocolError(f"row {row} ({node.op}): a keyword comes twice")
    for layout in node.layouts:
        if layout != FREE and sorted(layout) != list(range(len(layout))):
            raise ProtocolError(f"row {row} ({node.op}): {layout} is no order of dimensions")
