"""Key-value caches: what attention reads and the next step reads again.

Grown caches (`cat` of an earlier graph's value with new keys), fixed ones (written at a position, read by attention),
windows of either, beams in between (`index_select`), and caches that are written once and read by every step (the
cross-attention of an encoder-decoder). A `cat` that no attention reads is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from remora.ir.annotated import Meaning, Phase, Residency
from remora.ir.node import Ref, Slot
from remora.semantics.attention import Attention
from remora.semantics.meanings import Meanings
from remora.semantics.memory import Memory
from remora.semantics.reading import Arg, Reading, Root

KV = Residency.KV_CACHE
PUTS = frozenset({"index_copy_", "index_put_", "_index_put_impl_", "copy_", "scatter_", "index_copy", "set_"})
_JOINS = frozenset({"cat", "concat", "concatenate"})
MIN_DIMS = 3  # of a cache: batch, tokens and features at least


def recognise(reading: Reading, sites: Iterable[Attention]) -> Meanings:
    """What is a cache, with the reason."""
    search = _Search(reading)
    for site in sites:
        for what, arg in (("keys", site.key), ("values", site.value)):
            search.read_by(site, what, arg)
    search.grown_from_known()
    search.learned_rows()
    return search.meanings()


def learn(reading: Reading, said: Meanings, sites: Iterable[Attention], memory: Memory) -> Memory:
    """What later graphs should know: makers and memories of caches, and rows that may turn out to be caches."""
    made = dict(memory.made)
    storages = dict(memory.storages)
    for number, meaning in said.slots.items():
        slot = reading.graph.slots[number]
        if meaning.residency is KV:
            storages[slot.storage] = KV
            if slot.made_by is not None:
                made[slot.made_by] = KV
    candidates = {
        (row.node, 0)
        for number, row in enumerate(reading.graph.rows)
        if said.row(number).residency is not KV and _may_be_cache(reading, number)
    }
    return replace(
        memory,
        storages=storages if storages != memory.storages else memory.storages,
        made=made if made != memory.made else memory.made,
        candidates=memory.candidates | candidates,
    )


def _may_be_cache(reading: Reading, row: int) -> bool:
    """A join that lives on: begun from nothing, or grown from what an earlier graph made."""
    if reading.ops[row] not in _JOINS or reading.roots[row][0] not in reading.kept:
        return False
    return _begun(reading, row) or _grown_slot(reading, row) is not None


def _is_big(reading: Reading, arg: Arg) -> bool:
    return reading.is_float(arg) and len(reading.shape(arg)) >= MIN_DIMS


def _begun(reading: Reading, row: int) -> bool:
    """Whether a join has an empty part: a cache's first filling."""
    return _is_big(reading, Ref(row)) and any(
        reading.shape(arg) == (0,) or 0 in reading.shape(arg) for arg in reading.inputs[row]
    )


def _grown_slot(reading: Reading, row: int) -> int | None:
    """The slot whose data a join makes longer along a dimension that is not the last."""
    whole = reading.shape(Ref(row))
    if not _is_big(reading, Ref(row)):
        return None
    for arg in reading.inputs[row]:
        part, origin = reading.shape(arg), reading.origin(arg)
        if not isinstance(origin, Slot) or len(part) != len(whole) or 0 in part:
            continue
        longer = [dim for dim in range(len(whole)) if part[dim] != whole[dim]]
        slot = reading.graph.slots[origin.index]
        if len(longer) == 1 and longer[0] != len(whole) - 1 and not slot.uploaded:
            return origin.index
    return None


def puts_of(reading: Reading, origin: Ref) -> list[tuple[int, int]]:
    """Rows that put a row's output, as it is or a part of it, into other memory, and the place of that memory."""
    found: list[tuple[int, int]] = []
    pending, seen = [origin.row], {origin.row}
    while pending:
        for reader in reading.readers[pending.pop()]:
            if reader in seen:
                continue
            seen.add(reader)
            if reading.ops[reader] in PUTS:
                found += [(reader, place) for place in reading.graph.rows[reader].writes]
            elif reading.carries(reader):
                pending.append(reader)
    return found


class _Search:
    """What was found so far: memories and single rows that are caches, each with its reason."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.roots: dict[Root, str] = {}
        self.rows: dict[int, str] = {}
        for number, slot in enumerate(reading.graph.slots):
            if self._known(number):
                self.roots["slot", slot.storage, 0] = "cache: was one in an earlier graph"

    def _known(self, number: int) -> bool:
        slot, memory = self.reading.graph.slots[number], self.reading.memory
        return (
            slot.meaning.residency is KV
            or memory.storages.get(slot.storage) is KV
            or (
                slot.made_by is not None
                and memory.made.get(slot.made_by) is KV
                and len(slot.facts.shape) >= MIN_DIMS
            )
        )

    def read_by(self, site: Attention, what: str, arg: Arg) -> None:
        """Looks behind what an attention reads."""
        reading = self.reading
        origin = reading.origin(arg)
        if not _is_big(reading, origin):
            return
        by = f"read as {what} by {site.name(reading)}"
        if isinstance(origin, Ref) and reading.ops[origin.row] in _JOINS:
            self._joined(origin.row, by)
        root = reading.root(origin)
        puts = [row for row in reading.writers.get(root, ()) if reading.ops[row] in PUTS]
        if puts:
            self.roots.setdefault(root, f"cache: written by {reading.ops[puts[-1]]} (row {puts[-1]}), {by}")
        elif isinstance(origin, Slot) and root not in self.roots:
            self._held(origin.index, root, by)
        elif isinstance(origin, Ref):
            self._put(origin, what, by)

    def _put(self, origin: Ref, what: str, by: str) -> None:
        """Keys that go into other memory beside being read: a prompt that is longer than a window."""
        reading = self.reading
        for row, place in puts_of(reading, origin):
            into = reading.inputs[row][place]
            root = reading.root(into)
            if _is_big(reading, into) and (root[0] == "slot" or root in reading.kept):
                self.roots.setdefault(
                    root, f"cache: takes in (row {row}) {what} {by.removeprefix(f'read as {what} ')}"
                )

    def _joined(self, row: int, by: str) -> None:
        reading = self.reading
        grown = _grown_slot(reading, row)
        if grown is not None:
            slot = reading.graph.slots[grown]
            again = slot.made_by is not None and slot.made_by[0] == reading.graph.rows[row].node
            past = "this row's output of the step before" if again else "a value from an earlier graph"
            self.rows[row] = f"cache: {past} (slot {grown}) grows in row {row}, {by}"
            self.roots.setdefault(("slot", slot.storage, 0), f"cache: grows in row {row}, {by}")
        elif _begun(reading, row) and reading.roots[row][0] in reading.kept:
            self.rows[row] = f"cache: begins empty, is kept, {by}"
        else:  # a window over a fixed cache: the part before it is joined with the new one
            for arg in reading.inputs[row]:
                root = reading.root(reading.origin(arg))
                if any(reading.ops[writer] in PUTS for writer in reading.writers.get(root, ())):
                    self.roots.setdefault(root, f"cache: joined in row {row}, written back, {by}")

    def _held(self, number: int, root: Root, by: str) -> None:
        """A slot that attention reads as it is: kept from before, if it is not on its way through a cut."""
        slot, memory = self.reading.graph.slots[number], self.reading.memory
        if slot.meaning.phase is Phase.BACKWARD:
            return
        if slot.uploaded:
            self.roots[root] = f"cache: came from the client, {by}"
        elif slot.made_by in memory.candidates:
            self.roots[root] = f"cache: kept by a join in an earlier graph, {by}"
        elif slot.reads and slot.age > 1:
            self.roots[root] = f"cache: made {slot.age} graphs ago, read {slot.reads} times before, {by}"

    def grown_from_known(self) -> None:
        """Joins, selections and copies of a cache that live on are the cache from then on."""
        reading = self.reading
        for row, op in enumerate(reading.ops):
            if row in self.rows or not reading.roots[row] or reading.roots[row][0] in self.roots:
                continue
            if op in _JOINS and _is_big(reading, Ref(row)):
                past = [arg for arg in reading.inputs[row] if self._is_cache(reading.origin(arg))]
                if past and (reading.roots[row][0] in reading.kept or _grown_slot(reading, row) is not None):
                    self.rows[row] = f"cache: grows in row {row}, was one before"
            elif (
                reading.carries(row)
                and reading.roots[row][0] in reading.kept
                and self._is_cache(reading.origin(Ref(row)))
            ):
                self.rows[row] = f"cache: {op} of a cache, is kept"

    def _is_cache(self, origin: Arg) -> bool:
        return self.reading.root(origin) in self.roots or (
            isinstance(origin, Ref) and origin.row in self.rows
        )

    def learned_rows(self) -> None:
        """Rows whose output a later graph was seen to read as a cache."""
        reading, made = self.reading, self.reading.memory.made
        for row in range(len(reading.ops)) if made else ():
            roots = reading.roots[row]
            if row in self.rows or not roots or roots[0] not in reading.kept:
                continue
            if made.get((reading.graph.rows[row].node, 0)) is KV and _is_big(reading, Ref(row)):
                self.rows[row] = "cache: a later graph reads it as one"

    def meanings(self) -> Meanings:
        """Every row and slot that lies in a cache's memory."""
        reading, said = self.reading, Meanings()
        for row, reason in self.rows.items():
            self.roots.setdefault(reading.roots[row][0], reason)
        for row, roots in enumerate(reading.roots):
            if roots and (found := self.roots.get(roots[0])) is not None:
                said.rows[row] = Meaning(KV, evidence=(found,))
        for root, reason in self.roots.items():
            for number in reading.slots_of.get(root, ()):
                if len(reading.graph.slots[number].facts.shape) >= MIN_DIMS:
                    said.slots[number] = Meaning(KV, evidence=(reason,))
        return said
