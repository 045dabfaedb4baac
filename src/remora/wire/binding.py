"""A template's binding, written as what differs from the site's last run. Pure; both ends remember alike.

A name is (segment, row, out). A slot's prediction is either absolute (a weight: the same name each time) or
relative (last step's cache: the same distance back). A repeated step therefore sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from remora.errors import ProtocolError
from remora.wire.codec import encode
from remora.wire.messages import Run

Name = tuple[int, int, int]
T = TypeVar("T")


@dataclass
class SiteMemory:
    """The last binding of one site. slots: (relative, segment or distance, row, out)."""

    template: int
    slots: list[tuple[int, int, int, int]] = field(default_factory=list)
    holes: list[int | float] = field(default_factory=list)
    keep: tuple[int, ...] = ()
    frees: tuple[int, ...] = ()
    _names: list[Name] = field(default_factory=list, compare=False)  # of `slots`, right for those that stay,
    _moving: list[tuple[int, int, int, int]] | None = field(
        default=None, compare=False
    )  # and what follows: slot, distance, row, out; None: `slots` has changed since

    def copy(self) -> SiteMemory:
        return SiteMemory(self.template, list(self.slots), list(self.holes), self.keep, self.frees)

    def names(self, segment: int) -> list[Name]:
        """What the slots are in a segment that binds them as the last one did."""
        moving = self._moving
        if moving is None:
            self._names = [(at, row, out) for _, at, row, out in self.slots]
            moving = self._moving = [(slot, *entry[1:]) for slot, entry in enumerate(self.slots) if entry[0]]
        names = self._names.copy()
        for slot, distance, row, out in moving:
            names[slot] = segment - distance, row, out
        return names

    def changed(self) -> None:
        """`slots` is not what it was."""
        self._moving = None


def encode_run(
    memory: SiteMemory,
    segment: int,
    site: int,
    names: list[Name],
    holes: list[int | float],
    keep: tuple[int, ...],
    frees: tuple[int, ...],
    wants: tuple[int, ...] | None = None,
    ticket: int | None = None,
    uploaded: frozenset[int] = frozenset(),
    again: bool = False,
) -> Run:
    """The Run that tells these names, holes, keep-set and frees; updates the memory as the peer will.

    keep: flat (row, out). frees: flat (distance, row, out). uploaded: slots whose value came from the client;
    at a new site they are guessed to stay, and what a run made to follow. again: other values stand where those of the
    site's last run stood, and will stay or follow as those did.
    """
    run = Run(
        segment,
        site,
        _encode_slots(memory, segment, names, uploaded, again),
        _encode_holes(memory, holes),
        None if keep == memory.keep else keep,
        None if frees == memory.frees else frees,
        wants,
        ticket,
    )
    memory.keep, memory.frees = keep, frees
    return run


def count_changes(memory: SiteMemory, segment: int, names: list[Name], limit: int) -> int:
    """How many names differ from what the site's last run predicts; stops counting above `limit`."""
    if len(memory.slots) != len(names):
        return len(names) + 1
    expected = memory.names(segment)
    if names == expected:
        return 0
    changes = 0
    for name, predicted in zip(names, expected, strict=True):
        if name != predicted:
            changes += 1
            if changes > limit:
                break
    return changes


def _encode_slots(
    memory: SiteMemory, segment: int, names: list[Name], uploaded: frozenset[int], again: bool
) -> tuple[int, ...] | None:
    known = memory.slots
    first = not known
    if not first and names == memory.names(segment):
        return None
    memory.changed()
    changed: list[int] = []
    for slot, name in enumerate(names):
        number, row, out = name
        if first:
            relative = 0 if slot in uploaded else 1
            entry = (relative, segment - number if relative else number, row, out)
            known.append(entry)
        else:
            was_relative, was, was_row, was_out = known[slot]
            if was_row == row and was_out == out and number == (segment - was if was_relative else was):
                continue
            # the guess failed: name it the other way, which is how it will stay equal next time if it can
            relative = was_relative if again else 1 - was_relative
            entry = (relative, segment - number if relative else number, row, out)
            known[slot] = entry
        changed += (slot, *entry)
    return tuple(changed) or None


def _encode_holes(memory: SiteMemory, holes: list[int | float]) -> tuple[int | float, ...] | None:
    known = memory.holes
    if holes == known and (
        0 not in holes or encode(holes) == encode(known)
    ):  # -0.0 equals 0.0, its bits do not
        return None
    if len(known) != len(holes):
        memory.holes = list(holes)
        return tuple(number for pair in enumerate(holes) for number in pair)
    changed = [
        (hole, value)
        for hole, (value, was) in enumerate(zip(holes, known, strict=True))
        if value is not was and (value != was or (value == 0 and encode(value) != encode(was)))
    ]
    memory.holes = list(holes)
    return tuple([number for pair in changed for number in pair]) or None


@dataclass(frozen=True)
class Bound:
    """A Run with everything that it left out filled in, but for what ended before it: see `frees_of`."""

    names: list[Name]
    holes: list[int | float]
    keep: tuple[int, ...]


def decode_run(memory: SiteMemory, run: Run, n_slots: int, hole_kinds: tuple[str, ...]) -> Bound:
    """Inverse of `encode_run`.

    Raises:
        ProtocolError: an index is out of range, a number has the wrong type, something is missing.
    """
    apply_run(memory, run, n_slots, hole_kinds)
    return bound_of(memory, run.segment)


def bound_of(memory: SiteMemory, segment: int) -> Bound:
    """What a site binds for a segment."""
    return Bound(memory.names(segment), memory.holes, memory.keep)


def apply_run(memory: SiteMemory, run: Run, n_slots: int, hole_kinds: tuple[str, ...]) -> None:
    """Takes into the site's memory what a Run says. Raises as `decode_run`."""
    _decode_slots(memory, run, n_slots)
    _decode_holes(memory, run, hole_kinds)
    if run.keep is not None:
        memory.keep = run.keep
    if run.frees is not None:
        memory.frees = run.frees


def frees_of(memory: SiteMemory, segment: int) -> list[Name]:
    """Names that ended before segment `segment` of the site was sent."""
    return [(segment - distance, row, out) for distance, row, out in groups(memory.frees, 3)]


def _decode_slots(memory: SiteMemory, run: Run, n_slots: int) -> None:
    known = memory.slots
    if run.slots:
        memory.changed()
    for slot, relative, at, row, out in groups(run.slots or (), 5):
        if slot == len(known) < n_slots:
            known.append((relative, at, row, out))
        elif 0 <= slot < len(known):
            known[slot] = (relative, at, row, out)
        else:
            raise ProtocolError(f"segment {run.segment}: slot {slot} of {n_slots} at site {run.site}")
    if len(known) != n_slots:
        raise ProtocolError(f"segment {run.segment}: {len(known)} of {n_slots} slots are bound")


def _decode_holes(memory: SiteMemory, run: Run, kinds: tuple[str, ...]) -> None:
    known = memory.holes
    for hole, value in groups(run.holes or (), 2):
        if not isinstance(hole, int) or not 0 <= hole < len(kinds) or hole > len(known):
            raise ProtocolError(f"segment {run.segment}: hole {hole} of {len(kinds)} at site {run.site}")
        if (kinds[hole] == "int") != isinstance(value, int):
            raise ProtocolError(f"segment {run.segment}: hole {hole} is {kinds[hole]}, got {value!r}")
        if hole == len(known):
            known.append(value)
        else:
            known[hole] = value
    if len(known) != len(kinds):
        raise ProtocolError(f"segment {run.segment}: {len(known)} of {len(kinds)} holes are bound")


def groups(flat: tuple[T, ...], size: int) -> list[tuple[T, ...]]:
    """Cuts a flat tuple into groups of `size`.

    Raises:
        ProtocolError: something is left over.
    """
    if len(flat) % size:
        raise ProtocolError(f"{len(flat)} numbers do not form groups of {size}")
    return list(zip(*[iter(flat)] * size, strict=True))
