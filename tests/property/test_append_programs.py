"""Random programs that grow, fork, reorder, view, write and drop tensors give what plain PyTorch gives.

A session ahead of its client, which is undone, is such a program: names are dropped, and the same length is made
again with other values.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
import remora
from remora.config import ClientSettings
from remora.executor.worker import append
from remora.session.connect import open_on
from remora.transport.inprocess import InProcessTransport
from worker_endpoint import WorkerEndpoint

KINDS = (
    *("grow", "go on", "write") * 3,
    *(
        "grow",
        "go on",
        "drop",
        "drop last",
        "write view",
        "view",
        "reorder",
        "attend",
        "strided",
        "read",
        "take",
    ),
)
Action = tuple[str, int, int, bool]
Seen = list[tuple[tuple[int, ...], torch.Tensor]]


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(append, "LEAST_NBYTES", 64)
        patch.setattr(append, "_FIRST", 1 << 20)  # rows go on appending, however often it is in vain
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


class Play:
    """A program over caches [2, 2, rows, 4] on a device. All that lives is looked at in the end."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.caches = [torch.arange(160.0).reshape(2, 2, 10, 4).to(device)]
        self.others: list[torch.Tensor] = []
        self.seen: list[torch.Tensor] = []
        for number in range(3):  # from the second on, in place
            self.act(number, "grow", number, 0)
            self.cut()

    def cut(self) -> None:
        """What follows is another template, which reads what is there now from outside."""
        bool(torch.zeros(1, device=self.device).add(1).sum() > 0)

    def fresh(self, number: int, rows: int) -> torch.Tensor:
        return torch.full((2, 2, rows, 4), float(number)).to(self.device)

    def act(self, number: int, kind: str, choice: int, amount: int) -> None:
        caches = self.caches
        at = choice % len(caches)
        cache = caches[at]
        if kind == "grow":  # the former one lives on: it can fork
            caches.append(torch.cat([cache, self.fresh(number, 1 + amount % 2)], -2))
        elif kind == "go on":
            caches[at] = torch.cat([cache, self.fresh(number, 1)], 2)
        elif kind == "drop" and len(caches) > 1:
            del caches[at]
        elif kind == "drop last" and len(caches) > 1:
            del caches[-1 - amount % (len(caches) - 1) :]
        elif kind == "write":
            cache[:, :, amount % cache.shape[2]] = -number
        elif kind == "write view" and self.others:
            self.others[choice % len(self.others)].mul_(2)
        elif kind == "view":
            self.others.append([cache[:, 1], cache.transpose(1, 2), cache.view(4, -1, 4)][amount % 3])
        elif kind == "reorder":
            order = torch.tensor([amount % 2, choice % 2]).to(self.device)
            caches[at] = cache.index_select(0, order)
        elif kind == "attend":
            query = cache[:, :, -1:] / 100
            self.others.append(torch.nn.functional.scaled_dot_product_attention(query, cache, cache))
        elif kind == "strided":
            self.others.append(cache.as_strided((3, 4), (4, 1), 8 * amount) + cache.stride()[0])
        elif kind == "read":
            self.seen.append(cache.clone().cpu())
        elif kind == "take":
            self.seen.append(cache.cpu().clone())

    def all(self) -> Seen:
        living = [(tensor.stride(), tensor.cpu()) for tensor in (*self.caches, *self.others)]
        return [((), tensor) for tensor in self.seen] + living


@torch.no_grad()
def play(actions: list[Action], device: str) -> Seen:
    program = Play(device)
    for number, (kind, choice, amount, cut) in enumerate(actions, 10):
        program.act(number, kind, choice, amount)
        if cut:
            program.cut()
    return program.all()


def remote(actions: list[Action]) -> tuple[Seen, int]:
    """What a session gives, and the bytes that are still held when the program has ended."""
    with tempfile.TemporaryDirectory() as folder:
        endpoint = WorkerEndpoint(Path(folder))
        open_on(InProcessTransport(endpoint), ClientSettings())
        try:
            found = play(actions, "remora")
            return found, torch.remora.memory_allocated()
        finally:
            remora.disconnect()


ACTIONS = st.tuples(st.sampled_from(KINDS), st.integers(0, 7), st.integers(0, 7), st.booleans())


@given(st.lists(ACTIONS, min_size=3, max_size=40))
@settings(max_examples=300, deadline=None)
def test_nothing_that_lives_can_tell(actions: list[Action]):
    expected = play(actions, "cpu")
    found, held_nbytes = remote(actions)
    for (a_stride, a), (b_stride, b) in zip(expected, found, strict=True):
        assert torch.equal(a, b)
        assert a_stride == b_stride
    assert held_nbytes == 0
