"""Short programs that tell how fast a device is, as templates that any executor runs.

One template makes the inputs (`PREPARE`); each probe repeats one op on them, so that its time divided by its rows
is the op's. A probe says which rate it sets; those that set none are held out, to tell how well the others predict.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import prod

from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.graph import Template
from remora.ir.node import Arg, Const, Hole, Items, Node, Ref, Slot, Symbol
from remora.ops.cost import Kind

Number = int | float
Operand = int | float | bool | str | None | Ref | Slot | Symbol | list["Operand"]
Call = tuple[str, list["Operand"], tuple[int, ...]]
"""Op, operands, shape of the result."""

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8}


class Sets(Enum):
    """What a probe's time is taken for."""

    CALL = "call"  # a row as such, among others
    FIXED = "fixed"  # a kernel on next to nothing
    HOT = "hot"  # bytes per second, from cache
    COLD = "cold"  # bytes per second, from memory
    FLOPS = "flops"  # operations per second
    NOTHING = "nothing"  # held out


@dataclass(frozen=True)
class Probe:
    """A program over tensors that `prepare` made. inputs: which of them fill its slots.

    kind: of the op that it repeats. The graph's last use of each row is the row itself, so nothing is kept.
    """

    name: str
    sets: Sets
    kind: Kind
    graph: Graph
    inputs: tuple[int, ...] = ()

    @property
    def template(self) -> Template:
        return Template(tuple(row.node for row in self.graph.rows))


@dataclass
class Bench:
    """All that is run on one device: what makes the inputs, then the probes."""

    made: list[Row] = field(default_factory=list)
    holes: list[Number] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)

    @property
    def prepare(self) -> Template:
        """Makes the inputs: output 0 of row r is what probes call input r."""
        return Template(tuple(row.node for row in self.made))

    def tensor(self, *shape: int, dtype: str = "float32", value: float = 0.5) -> int:
        """An input filled with one value; returns its number."""
        node = node_of("aten.full.default", [list(shape), value], self.holes, _made_as(dtype))
        self.made.append(Row(node, (Facts(dtype, shape, ITEMSIZE[dtype]),), (None,)))
        return len(self.made) - 1

    def indices(self, count: int, step: int) -> int:
        """An input of row numbers 0, step, 2 step, …"""
        node = node_of("aten.arange.start_step", [0, count * step, step], self.holes, _made_as("int64"))
        self.made.append(Row(node, (Facts("int64", (count,), 8),), (None,)))
        return len(self.made) - 1

    def probe(
        self,
        name: str,
        sets: Sets,
        kind: Kind,
        calls: list[Call],
        dtype: str = "float32",
    ) -> None:
        """Adds a probe of some calls (op, operands, shape of the result). A Slot among the operands is an input."""
        inputs: dict[int, int] = {}
        holes: list[Number] = []
        rows = []
        for op, operands, shape in calls:
            node = node_of(op, [_slotted(operand, inputs) for operand in operands], holes)
            rows.append(Row(node, (Facts(dtype, shape, ITEMSIZE[dtype]),), (None,)))
        slots = tuple(Outside(facts_of(self.made[made]), slot) for made, slot in inputs.items())
        graph = Graph(tuple(rows), slots, tuple(holes))
        self.probes.append(Probe(name, sets, kind, graph, tuple(inputs)))


def facts_of(row: Row) -> Facts:
    facts = row.outs[0]
    assert facts is not None
    return facts


def _made_as(dtype: str) -> dict[str, Operand]:
    return {"dtype": Symbol("dtype", dtype), "device": Symbol("device", "executor")}


def _slotted(operand: Operand, inputs: dict[int, int]) -> Operand:
    """Inputs numbered as the probe's slots, in the order in which they are used."""
    if isinstance(operand, Slot):
        return Slot(inputs.setdefault(operand.index, len(inputs)))
    if isinstance(operand, list):
        return [_slotted(item, inputs) for item in operand]
    return operand


def node_of(
    op: str, operands: list[Operand], holes: list[Number], keywords: dict[str, Operand] | None = None
) -> Node:
    args = tuple(_arg(operand, holes) for operand in operands)
    return Node(op, args, tuple((name, _arg(value, holes)) for name, value in (keywords or {}).items()))


def _arg(operand: Operand, holes: list[Number]) -> Arg:
    if operand is None or isinstance(operand, bool | str):
        return Const(operand)
    if isinstance(operand, int | float):
        holes.append(operand)
        return Hole("int" if isinstance(operand, int) else "float")
    if isinstance(operand, list):
        return Items(tuple(_arg(item, holes) for item in operand))
    return operand


def nbytes(bench: Bench) -> int:
    """Memory that the inputs take."""
    return sum(prod(facts_of(row).shape) * facts_of(row).itemsize for row in bench.made)
