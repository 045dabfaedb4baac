"""The program says where each row runs: each executor is a device of its own."""

from __future__ import annotations

from typing import ClassVar

from remora.ir.annotated import Graph, Row
from remora.ir.node import Ref, Slot, device_index
from remora.plan.estimate import Costs
from remora.plan.policies.policy import Policy, Wish
from remora.plan.situation import Situation


class Explicit(Policy):
    """Each row on the device that it names, else on that of its first tensor, where the others are too."""

    name: ClassVar[str] = "explicit"
    indexed: ClassVar[bool] = True

    def place(self, graph: Graph, situation: Situation, costs: Costs) -> Wish:
        executors: list[int] = []
        for row in graph.rows:
            executors.append(_device_of(row, executors, situation))
        rows = ", ".join(f"{executors.count(at)} on remora:{at}" for at in sorted(set(executors)))
        return Wish(tuple(executors), rows, "as the program says")


def _device_of(row: Row, executors: list[int], situation: Situation) -> int:
    named = device_index(row.node)
    if named is not None:
        return named
    match row.tensors():
        case [Ref(at), *_]:
            return executors[at]
        case [Slot(index), *_]:
            owner = situation.owners[index]
            assert owner is not None, "what is uploaded has a device from the start"
            return owner
    return 0
