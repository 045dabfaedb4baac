"""Modality: what kind of input a row's values come from.

It begins where an input becomes features (a look-up of token ids, a convolution over pictures or sound, many look-ups
in tables of categories) and follows the values. Where a text takes in features of another kind it stays a text;
attention is of its query's kind; where two kinds meet as equals there is none.
"""

from __future__ import annotations

from collections.abc import Iterable

from remora.ir.annotated import Meaning, Modality, Residency
from remora.ir.node import Ref, Slot
from remora.semantics.attention import Attention
from remora.semantics.meanings import Meanings
from remora.semantics.reading import Arg, Reading

TEXT, VISION, AUDIO, SPARSE = Modality.TEXT, Modality.VISION, Modality.AUDIO, Modality.SPARSE
MIXED = "mixed"
Kind = Modality | str | None
MIN_TABLES = 3  # looked up side by side, so that it is categories and not text

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "convolution", "_convolution"})
_LAYERS = frozenset({"linear", "addmm", "mm", "matmul", "bmm", "lstm", "gru"})
_BAGS = frozenset({"embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"})
_INSERTS = frozenset(
    {"cat", "masked_scatter", "masked_scatter_", "index_put", "index_put_", "where", "copy_"}
)
_COUNTS = frozenset({"arange", "cumsum"})
_PICKS = frozenset({"argmax", "multinomial", "topk", "max", "sort"})


def recognise(reading: Reading, known: Meanings, sites: Iterable[Attention]) -> Meanings:
    """Of rows, and of the slots that only rows of one kind read."""
    flow = _Flow(reading, known, sites)
    for row in range(len(reading.ops)):
        flow.visit(row)
    for row in reversed(range(len(reading.ops))):
        flow.fill(row)
    flow.fill_by_path()
    said = Meanings()
    for row, kind in enumerate(flow.kinds):
        if isinstance(kind, Modality):
            said.rows[row] = Meaning(modality=kind, evidence=(flow.reasons[row],))
    for number, slot in enumerate(reading.graph.slots):
        kinds = {flow.kinds[row] for row, _ in reading.slot_readers[number]}
        kind = slot.meaning.modality or (kinds.pop() if len(kinds) == 1 else None)
        if isinstance(kind, Modality):
            said.slots[number] = Meaning(modality=kind, evidence=(f"modality: only rows of {kind} read it",))
    return said


class _Flow:
    """Kinds of the rows visited so far; rows come in order.

    raw: of rows that carry a floating input of the client which has no kind yet, its number of dimensions; -1 behind a
    layer: features of no kind.
    """

    def __init__(self, reading: Reading, known: Meanings, sites: Iterable[Attention]) -> None:
        self.reading, self.known = reading, known
        self.kinds: list[Kind] = []
        self.raw: list[int] = []
        self.reasons: dict[int, str] = {}
        self.follows_first = {row for site in sites for row in (site.rows[0], site.rows[-1])}
        self.tables = self._tables()

    def visit(self, row: int) -> None:
        reading = self.reading
        begun = self._begins(row)
        kinds: dict[Kind, str] = {}
        inputs = reading.inputs[row]
        first = inputs[-2:-1] if reading.ops[row] == "baddbmm" else inputs[:1]
        for arg in first if row in self.follows_first else inputs:
            kind = self._kind(arg)
            if kind is not None:
                kinds.setdefault(kind, self._reason(arg))
        if row not in self.follows_first:
            for source in reading.sources[row]:
                if self.kinds[source] is not None:
                    kinds.setdefault(self.kinds[source], self.reasons.get(source, ""))
        self.raw.append(self._raw_through(row) if not kinds and begun is None else 0)
        if begun is not None and set(kinds) <= {begun[0], TEXT}:
            self.kinds.append(begun[0])
            self.reasons[row] = f"modality: {begun[1]} (row {row})"
            return
        kind = self._merged(row, kinds)
        self.kinds.append(kind)
        if kind is not None:
            self.reasons[row] = kinds.get(kind, "")

    def fill(self, row: int) -> None:
        """What has no kind of its own, such as a mask or positions, is of the kind of all that read it."""
        if self.kinds[row] is not None or self.raw[row] < 0:
            return
        kinds = {self.kinds[reader] for reader in self.reading.readers[row]}
        if len(kinds) == 1 and isinstance(kind := kinds.pop(), Modality):
            self.kinds[row], self.reasons[row] = kind, f"modality: only rows of {kind} read it"

    def fill_by_path(self) -> None:
        """What remains is of the kind of the innermost module around it that has any, if that has one alone."""
        kinds: dict[str, set[Kind]] = {}
        paths = [row.module.partition(" (")[0] for row in self.reading.graph.rows]
        around = {path: _around(path) for path in dict.fromkeys(paths)}
        for path, kind in zip(paths, self.kinds, strict=True):
            for module in around[path] if kind is not None else ():
                kinds.setdefault(module, set()).add(kind)
        for row, path in enumerate(paths):
            if self.kinds[row] is not None or self.raw[row] < 0:
                continue
            inner = next((module for module in around[path] if module in kinds), None)
            if inner is None or len(kinds[inner]) > 1:
                continue
            (kind,) = kinds[inner]
            self.kinds[row], self.reasons[row] = kind, f"modality: all that runs in {inner} is {kind}"

    def _kind(self, arg: Arg) -> Kind:
        if isinstance(arg, Ref):
            return self.kinds[arg.row]
        if self.known.slot(arg.index).residency is Residency.WEIGHT:
            return None
        return self.reading.graph.slots[arg.index].meaning.modality

    def _reason(self, arg: Arg) -> str:
        if isinstance(arg, Ref):
            return self.reasons.get(arg.row, "")
        return f"modality: slot {arg.index} is of an earlier graph's {self._kind(arg)}"

    def _raw_through(self, row: int) -> int:
        raw = [self._raw(arg) for arg in self.reading.inputs[row]]
        if any(n < 0 for n in raw) or (any(raw) and self.reading.ops[row] in _LAYERS):
            return -1
        return max(raw, default=0)

    def _raw(self, arg: Arg) -> int:
        if isinstance(arg, Ref):
            return self.raw[arg.row]
        is_input = self.known.slot(arg.index).residency is Residency.INPUT
        return len(self.reading.shape(arg)) if is_input and self.reading.is_float(arg) else 0

    def _begins(self, row: int) -> tuple[Modality, str] | None:
        """Where an input becomes features."""
        reading, op = self.reading, self.reading.ops[row]
        inputs = reading.inputs[row]
        if op in _BAGS:
            return SPARSE, "bags of categories are looked up"
        if op == "embedding" and len(inputs) > 1:
            if row in self.tables:
                return SPARSE, f"one of {len(self.tables)} tables looked up side by side"
            return (TEXT, "token ids are looked up") if self._is_data(inputs[0], inputs[1]) else None
        if op in _CONVOLUTIONS and inputs and (dims := self._raw(inputs[0])) > 0:
            n = len(reading.shape(inputs[0]))
            if n == 5 or (n == 4 and (dims > 3 or reading.shape(inputs[0])[1] == 3)):
                return VISION, "a convolution over an image"
            return AUDIO, "a convolution over sound"
        if op in ("linear", "addmm", "matmul") and any(self._raw(arg) >= 4 for arg in inputs):
            return VISION, "a projection of an image's patches"
        return None

    def _is_data(self, table: Arg, index: Arg) -> bool:
        """Whether an embedding's index is data, and not a count of positions."""
        reading = self.reading
        origin = reading.origin(index)
        if isinstance(origin, Slot):
            shape, rows = reading.shape(origin), reading.shape(table)[:1]
            return not (shape[-1:] == rows and reading.graph.slots[origin.index].uploaded)
        seen, pending = {origin.row}, [origin.row]
        while pending:
            row = pending.pop()
            if reading.ops[row] in _COUNTS:
                return False
            if reading.ops[row] in _PICKS:
                continue
            pending += [source for source in reading.sources[row] if source not in seen]
            seen.update(reading.sources[row])
        return True

    def _tables(self) -> frozenset[int]:
        """Look-ups in several tables whose results are joined or multiplied, and not added up."""
        reading = self.reading
        found: dict[object, int] = {}
        for row, op in enumerate(reading.ops):
            if op == "embedding" and len(reading.inputs[row]) > 1 and self._is_joined(row):
                found.setdefault(reading.root(reading.inputs[row][0]), row)
        return frozenset(found.values()) if len(found) >= MIN_TABLES else frozenset()

    def _is_joined(self, row: int) -> bool:
        level, seen = list(self.reading.readers[row]), {row}
        while level:
            reader = level.pop()
            if self.reading.ops[reader] in ("cat", "stack", "bmm"):
                return True
            if self.reading.carries(reader) and reader not in seen:
                seen.add(reader)
                level += self.reading.readers[reader]
        return False

    def _merged(self, row: int, kinds: dict[Kind, str]) -> Kind:
        if len(kinds) < 2:
            return next(iter(kinds), None)
        if SPARSE in kinds:
            return SPARSE
        if MIXED in kinds:
            return MIXED
        op = self.reading.ops[row]
        if TEXT in kinds and op in _INSERTS:
            return TEXT
        if TEXT in kinds and len(kinds) == 2 and op in ("add", "add_"):
            added = [arg for arg in self.reading.inputs[row] if self._kind(arg) is TEXT]
            origins = [self.reading.origin(arg) for arg in added]
            if all(isinstance(arg, Ref) and self.reading.ops[arg.row] == "embedding" for arg in origins):
                return next(kind for kind in kinds if kind is not TEXT)  # an embedding of positions
        return MIXED


def _around(path: str) -> list[str]:
    """The modules around a row, the innermost first: of `Net.h.0`, itself, `Net.h` and `Net`."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
