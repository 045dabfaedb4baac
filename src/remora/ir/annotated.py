"""A graph with what is known of its tensors and what they mean: the planner's view of a template in use.

A template holds ops and wiring alone. Here each row also has its outputs' shapes, which inputs they share memory
with, where in the program it comes from, and, once it is annotated, what it means, each with the evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from math import prod

from remora.ir.node import Node, Ref, Slot


class Stage(IntEnum):
    """How far a graph has come. Each stage has rules of its own, checked when a graph enters it (ir/stages.py)."""

    CAPTURED = 0
    ANNOTATED = 1
    PLACED = 2
    EXECUTABLE = 3


class Residency(StrEnum):
    """What a tensor is to the program, and so how long it is worth keeping where."""

    WEIGHT = "weight"
    KV_CACHE = "kv_cache"
    ACTIVATION = "activation"
    INPUT = "input"
    OUTPUT = "output"
    OPTIMIZER_STATE = "optimizer_state"


class Phase(StrEnum):
    """What the program is doing in a row."""

    PREFILL = "prefill"
    DECODE = "decode"
    FORWARD = "forward"
    BACKWARD = "backward"


class Modality(StrEnum):
    TEXT = "text"
    VISION = "vision"
    AUDIO = "audio"
    SPARSE = "sparse"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a tensor looks like. dtype: as in ops/dtypes.py. itemsize: bytes of an element."""

    dtype: str
    shape: tuple[int, ...]
    itemsize: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a recogniser said of a row's outputs or of a slot; None: nobody recognised it.

    layer: index of the repeated block that it belongs to, from 0. evidence: one sentence for each thing that is
    said, starting with the recogniser's name.
    """

    residency: Residency | None = None
    phase: Phase | None = None
    modality: Modality | None = None
    layer: int | None = None
    evidence: tuple[str, ...] = ()


NOTHING = Meaning()


@dataclass(frozen=True, slots=True)
class Row:
    """One op with its outputs.

    outs: of each output; None for one that is no tensor, or whose shape only the data tells.
    shares: for each output, the input (position among the tensors of `node.inputs()`) whose memory it lies in, or None.
    writes: inputs, by the same positions, that the row writes.
    module: dotted path of the module that ran it, '' outside of modules. source: 'file:line'.
    """

    node: Node
    outs: tuple[Facts | None, ...]
    shares: tuple[int | None, ...]
    writes: tuple[int, ...] = ()
    module: str = ""
    source: str = ""
    meaning: Meaning = NOTHING
    _tensors: tuple[Ref | Slot, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def tensors(self) -> tuple[Ref | Slot, ...]:
        """The tensor inputs, in order: what `shares` and `writes` count."""
        known = self._tensors  # planning asks dozens of times
        if known is None:
            known = tuple([arg for arg in self.node.inputs() if isinstance(arg, Ref | Slot)])
            object.__setattr__(self, "_tensors", known)
        return known


@dataclass(frozen=True, slots=True)
class Outside:
    """A value that the graph reads and that was there before.

    storage: equal for slots that share memory. uploaded: it came from the client. made_by: the node that made it in
    an earlier graph of this session, and its output, or None if it was uploaded. made_in: the template of that graph,
    as Graph.template. age: how many graphs ago it was made.
    written: whether any row so far has written its memory. reads: in how many graphs it was read before this one.
    meaning: of a captured graph, what was said of the row that made it, or of the slot that it was in the last graph
    that read it; of an annotated one, what is said now.
    """

    facts: Facts
    storage: int
    uploaded: bool = False
    made_by: tuple[Node, int] | None = None
    age: int = 0
    written: bool = False
    reads: int = 0
    meaning: Meaning = NOTHING
    made_in: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """Rows over slots, with the numbers of one use of the template.

    template: its id in hex, '' if nobody needs to know a graph's values from those of another graph.
    holes: the numbers bound in this use, in row order. keep: outputs (row, out) that live on. wants: outputs (row, out)
    whose bytes go to the client. executors: of each row, once placed.
    """

    rows: tuple[Row, ...]
    slots: tuple[Outside, ...]
    holes: tuple[int | float, ...] = ()
    keep: frozenset[tuple[int, int]] = frozenset()
    wants: frozenset[tuple[int, int]] = frozenset()
    stage: Stage = Stage.CAPTURED
    executors: tuple[int, ...] = field(default=())
    template: str = ""

    def facts(self, arg: Ref | Slot) -> Facts | None:
        """What an input looks like."""
        if isinstance(arg, Slot):
            return self.slots[arg.index].facts
        return self.rows[arg.row].outs[arg.out]

    def storage(self, arg: Ref | Slot) -> tuple[str, int, int]:
        """Whose memory an input lies in: ('slot', storage, 0), or ('row', row, out) of the row that made it."""
        while isinstance(arg, Ref):
            row = self.rows[arg.row]
            shared = row.shares[arg.out]
            if shared is None:
                return "row", arg.row, arg.out
            arg = row.tensors()[shared]
        return "slot", self.slots[arg.index].storage, 0

    def readers(self) -> dict[tuple[int, int], list[int]]:
        """Rows that read each output (row, out)."""
        found: dict[tuple[int, int], list[int]] = {}
        for row, ref in self._refs():
            found.setdefault((ref.row, ref.out), []).append(row)
        return found

    def _refs(self) -> Iterator[tuple[int, Ref]]:
        for number, row in enumerate(self.rows):
            for arg in row.node.inputs():
                if isinstance(arg, Ref):
                    yield number, arg
