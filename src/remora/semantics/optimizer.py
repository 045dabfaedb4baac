"""Optimizer state: memory that a gradient of its own shape changes, and that changes a weight.

Written with a gradient and read into the update of the weight: the moments of Adam, the momentum of SGD, one tensor a
row, in `_foreach_` rows or in fused ones. A gradient that is accumulated, clipped or decayed in place is none.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from remora.ir.annotated import Meaning, Residency
from remora.ir.node import Ref, Slot
from remora.semantics.gradients import is_gradient_slot
from remora.semantics.meanings import Meanings
from remora.semantics.memory import maker
from remora.semantics.reading import Arg, Reading, Root

_DECAYS = frozenset({"add", "_foreach_add"})  # of a weight to its gradient
_SCALES, _TAKES = frozenset({"mul_", "_foreach_mul_"}), frozenset({"add_", "_foreach_add_"})
_MAKES = frozenset({"zeros_like", "zeros", "full_like", "full", "empty_like", "clone", "new_zeros"})


@dataclass(frozen=True)
class Training:
    """What an optimizer changes in a graph, with the reasons, and the rows that belong to its step."""

    weights: dict[Root, str] = field(default_factory=dict)
    states: dict[Root, str] = field(default_factory=dict)
    rows: frozenset[int] = frozenset()


def training(reading: Reading, gradients: frozenset[int]) -> Training:
    """Finds them in one pass over the rows, which stand in the order of the program."""
    return _Pass(reading, gradients).run()


class _Pass:
    def __init__(self, reading: Reading, gradients: frozenset[int]) -> None:
        self.reading, self.gradients = reading, gradients
        self.weights: dict[Root, str] = {}
        self.states: dict[Root, str] = {}
        self.scaled: set[Root] = set()
        self.steps: set[int] = set()  # rows of the optimizer's step
        for slot in reading.graph.slots:
            if (
                slot.meaning.residency is Residency.OPTIMIZER_STATE
                or reading.memory.storages.get(slot.storage) is Residency.OPTIMIZER_STATE
            ):
                self.states["slot", slot.storage, 0] = "optimizer: was its state in an earlier graph"

    def run(self) -> Training:
        reading = self.reading
        for row, outs in enumerate(reading.roots) if reading.memory.made else ():
            if not outs or outs[0] not in reading.kept or reading.ops[row] not in _MAKES:
                continue
            if reading.memory.made.get(maker(reading.graph, row)) is Residency.OPTIMIZER_STATE:
                self.states[outs[0]] = "optimizer: a later graph has it as its state"
                self.steps.add(row)
        for row in range(len(reading.ops)):
            inputs = reading.inputs[row]
            if any(self._of_step(arg) for arg in inputs):
                self.steps.add(row)
            for place in reading.graph.rows[row].writes:
                self._written(row, inputs, place)
        changed = self.states.keys() | self.weights.keys()
        for row, outs in enumerate(reading.roots):
            written = {reading.root(reading.inputs[row][place]) for place in reading.graph.rows[row].writes}
            decays = reading.ops[row] in _DECAYS and any(
                reading.root(arg) in self.weights for arg in reading.inputs[row]
            )
            if not changed.isdisjoint(written) or (outs and outs[0] in self.states) or decays:
                self.steps.add(row)
        return Training(self.weights, self.states, frozenset(self.steps))

    def _of_step(self, arg: Arg) -> bool:
        root = self.reading.root(arg)
        if root in self.states:
            return True
        return isinstance(arg, Ref) and arg.row in self.steps and root not in self.weights

    def _written(self, row: int, inputs: Sequence[Arg], place: int) -> None:
        reading = self.reading
        root, shape = reading.root(inputs[place]), reading.shape(inputs[place])
        if root in self.states or root in self.weights:
            self.steps.add(row)
            return
        if not reading.is_float(inputs[place]) or (
            self._is_gradient(inputs[place]) and not self._is_momentum(row, root)
        ):
            return
        by = {
            number
            for number, arg in enumerate(inputs)
            if reading.root(arg) != root and reading.shape(arg) == shape
        }
        by = {number for number in by if self._derived(inputs[number])}
        if not by:
            return
        op = f"{reading.ops[row]} (row {row})"
        if self._is_weight(root):
            self.weights[root] = f"weight: written by an optimizer's {op} alone"
            self._first_momentum(inputs, by)
            self.steps.add(row)
        elif self._lives_on(root):
            self.states[root] = f"optimizer: {op} writes it with a gradient of its shape"
            self.steps.add(row)

    def _is_momentum(self, row: int, root: Root) -> bool:
        """Whether what looks like a gradient is scaled and then takes in another: SGD's momentum began as a copy."""
        if self.reading.ops[row] in _SCALES:
            self.scaled.add(root)
        return root in self.scaled and self.reading.ops[row] in _TAKES

    def _derived(self, arg: Arg) -> bool:
        """Whether it is a gradient or was computed from one or from the optimizer's state."""
        return self._is_gradient(arg) or self._of_step(arg)

    def _is_gradient(self, arg: Arg) -> bool:
        if isinstance(arg, Slot):
            return is_gradient_slot(self.reading, arg) and self.reading.root(arg) not in self.states
        return arg.row in self.gradients

    def _slots(self, root: Root) -> Set[int]:
        return set(self.reading.slots_of.get(root, ())) if root[0] == "slot" else set()

    def _is_weight(self, root: Root) -> bool:
        slots = [self.reading.graph.slots[number] for number in self._slots(root)]
        return (
            any(slot.uploaded for slot in slots)
            or any(slot.meaning.residency is Residency.WEIGHT for slot in slots)
            or (root[0] == "slot" and self.reading.memory.storages.get(root[1]) is Residency.WEIGHT)
        )

    def _lives_on(self, root: Root) -> bool:
        if root[0] == "slot":
            return True
        return root in self.reading.kept and self.reading.ops[root[1]] in _MAKES

    def _first_momentum(self, inputs: Sequence[Arg], by: set[int]) -> None:
        """SGD begins its momentum as a copy of the gradient, which is kept."""
        reading = self.reading
        for number in by:
            root = reading.root(inputs[number])
            if root[0] == "row" and root in reading.kept and reading.ops[root[1]] == "clone":
                self.states.setdefault(root, f"optimizer: a copy of the gradient (row {root[1]}), kept")
                self.steps.add(root[1])


def recognise(reading: Reading, found: Training) -> Meanings:
    """State by slot, and the rows that make it or write it."""
    said = Meanings()
    for root, reason in found.states.items():
        meaning = Meaning(Residency.OPTIMIZER_STATE, evidence=(reason,))
        said.slots.update(dict.fromkeys(reading.slots_of.get(root, ()), meaning))
    for row, outs in enumerate(reading.roots):
        if outs and (reason_of := found.states.get(outs[0])) is not None:
            said.rows[row] = Meaning(Residency.OPTIMIZER_STATE, evidence=(reason_of,))
    return said
