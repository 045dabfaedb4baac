"""Calls captured as a whole where several executors are: what is placed is what op by op would be."""

from __future__ import annotations

import pytest
import torch

import remora
from remora.device import routes
from remora.device.sink import bound
from remora.session.connect import current
from remora.session.graphs import facts_of, metas_of


class Block(torch.nn.Module):
    """Grows a cache, writes in place, and has views."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(48))

    def forward(self, x, cache):
        for layer in self.layers:
            x = layer(x).relu() * 0.5
        cache = torch.cat([cache, x], dim=1)
        x = x.add_(1.0)
        return x + cache.transpose(1, 2).softmax(-1).mean(-1)[:, None, :], cache


def turns(net, device, n):
    """Outputs of `n` calls, the cache longer in each."""
    x, cache = torch.ones(2, 1, 8).to(device), torch.zeros(2, 1, 8).to(device)
    found = []
    with torch.no_grad():
        for _ in range(n):
            x, cache = net(x, cache)
            found.append(x.cpu())
    return found


@pytest.fixture(params=["semantic", "blind", "split"])
def pool(request, executors):
    remora.connect(executors, placement=request.param)
    yield
    remora.disconnect()


def test_sizes_of_rows_are_those_of_op_by_op(pool):
    net = Block().eval()
    expected = turns(net, "cpu", 8)
    there = Block().eval().to("remora")
    for _ in range(2):
        turns(there, "remora", 3 * routes.ENOUGH)
        assert remora.wait_warm(100)
    seen, segments = [], []

    def look(segment):
        ops = [node.op for node in segment.captured.template.nodes]
        facts = [[m and facts_of(m) for m in row] for row in metas_of(segment)]
        seen.extend(zip(ops, facts, strict=True))
        segments.append(bound.recorder.whole_calls)

    current().tap = look
    for whole in (True, False):
        bound.recorder.whole_calls = whole
        before = remora.stats().whole_calls
        results = turns(there, "remora", 8)
        assert (remora.stats().whole_calls - before > 4) == whole
        assert all(torch.equal(got, wanted) for got, wanted in zip(results, expected, strict=True))
    half = len(seen) // 2
    assert half
    assert len(seen) == 2 * half
    assert seen[:half] == seen[half:]
    assert segments.count(True) < segments.count(False) - 6  # a call stays together
