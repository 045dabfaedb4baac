"""Random programs that run again and again, on values that change, are freed, kept and written to: with graphs and
without, every value is the same at every step."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from graph_lane import Lane
from remora.ir.node import Hole, Node, Ref, Slot
from remora.wire.messages import Free, Recover

INT = Hole("int")


class Program:
    """Rows over some slots, all of them 4 x 4."""

    def __init__(self, rng: random.Random, n_slots: int) -> None:
        self.nodes: list[Node] = [Node("aten.mul.Tensor", (Slot(at), Slot(0))) for at in range(n_slots)]
        for number in range(n_slots, rng.randint(n_slots + 3, 14)):
            self._row(rng, number)
        self.n_slots = n_slots

    def _row(self, rng: random.Random, number: int) -> None:
        def any_ref() -> Ref | Slot:
            return Slot(rng.randrange(self.slots)) if rng.random() < 0.2 else Ref(rng.randrange(number))

        self.slots = len({arg.index for node in self.nodes for arg in node.inputs() if isinstance(arg, Slot)})
        kind = rng.randrange(10)
        if kind < 4:
            node = Node(rng.choice(["aten.add.Tensor", "aten.mul.Tensor"]), (any_ref(), any_ref()))
        elif kind < 6:
            node = Node("aten.tanh.default", (any_ref(),))
        elif kind == 6:
            node = Node("aten.t.default", (Ref(number - 1),))
            self.nodes.append(node)
            node = Node("aten.t.default", (Ref(len(self.nodes) - 1),))
        elif kind == 7:
            node = Node("aten.unsqueeze.default", (any_ref(), INT))
            self.nodes.append(node)
            node = Node("aten.squeeze.dim", (Ref(len(self.nodes) - 1), INT))
        elif kind == 8:
            node = Node("aten.mul_.Tensor", (any_ref(), Slot(0)))
        else:
            node = Node("aten.rand_like.default", (any_ref(),))
        self.nodes.append(node)

    def holes(self) -> list[int]:
        return [0 for node in self.nodes for arg in node.inputs() if arg == INT]


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_that_repeat(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    lane = Lane()
    with torch.inference_mode():
        run(lane, rng)
    for session in lane.sessions:
        session.close()


def run(lane: Lane, rng: random.Random) -> None:
    programs = [Program(rng, rng.randint(1, 3)) for _ in range(rng.randint(1, 3))]
    sites = [lane.program(*program.nodes) for program in programs]
    segment, living = 1, []
    for _ in range(3):
        lane.put(segment, torch.rand(4, 4))
        living.append((segment, 0, 0))
        segment += 1
    weights = list(living)
    binding: list[list[tuple[int, int, int]]] = [rng.choices(weights, k=p.n_slots) for p in programs]
    keeps = [
        tuple(n for row in sorted(rng.sample(range(len(p.nodes)), k=min(4, len(p.nodes)))) for n in (row, 0))
        for p in programs
    ]
    for step in range(14):
        for at, (program, site) in enumerate(zip(programs, sites, strict=True)):
            if rng.random() < 0.15:  # another value somewhere
                slot = rng.randrange(program.n_slots)
                binding[at][slot] = rng.choice(living)
            names = [name if name in living else rng.choice(living) for name in binding[at]]
            failed = lane.run(segment, site, names, keeps[at], holes=program.holes())
            if failed is not None:
                lane.tell(Recover(failed.failure))
            made = [(segment, row, 0) for row in keeps[at][::2]]
            made = [name for name in made if name in lane.sessions[1].values.tensors]
            if made and rng.random() < 0.7:  # the next program, or this one's next run, reads it
                binding[(at + rng.randint(0, 1)) % len(programs)][0] = made[-1]
            living += made
            segment += 1
            if rng.random() < 0.3:
                lane.same(*living)
        for name in rng.sample(living, k=max(0, len(living) - 12)):
            if name not in weights:
                living.remove(name)
                lane.tell(Free(name))
        if step == 9 and rng.random() < 0.3:
            lane.graphed.device.drop_graphs()
    lane.same(*living)
    for session in lane.sessions:
        assert session.values.count == len(living)
