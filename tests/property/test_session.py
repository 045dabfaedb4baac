"""A session through any cuts and resends gives what a session without them gives, and runs nothing twice."""

from __future__ import annotations

import random
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
from remora.session import link
from remora.session.connect import open_on
from remora.transport.faulty import FaultyTransport, random_script
from remora.transport.inprocess import InProcessTransport
from worker_endpoint import WorkerEndpoint

ACTIONS = ("put", "store", "add", "write", "drop", "fetch", "order", "fail", "idle")


@pytest.fixture(autouse=True, scope="module")
def impatient():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "PAUSES_S", (0.0,))
        patch.setattr(link, "PING_AFTER_S", 0.001)
        patch.setattr(link, "SILENCE_S", 0.01)
        yield


def play(actions, device, idle=lambda: None):
    """Runs a program; returns everything that it saw."""
    seen = []
    values = [torch.arange(4.0).to(device)]
    for number, (action, choice) in enumerate(actions):
        x = values[choice % len(values)]
        if action == "put":
            values.append(torch.full((4,), float(number)).to(device))
        elif action == "store":
            values.append(torch.full((20_000,), float(number)).to(device)[:4])
        elif action == "add":
            values.append(x + values[number % len(values)])
        elif action == "write":
            x.mul_(2)
        elif action == "drop" and len(values) > 1:
            values.pop(choice % len(values))
        elif action == "fetch":
            seen.append(x.tolist())
        elif action == "order" and device == "remora":
            torch.remora.synchronize()
        elif action == "fail":
            lost = (
                torch.nn.functional.embedding(torch.full((1,), 9, device=device), x[:, None])
                if device == "remora"
                else None
            )
            try:
                if lost is not None:
                    lost.tolist()
                    seen.append("no error")
            except IndexError:
                pass
        elif action == "idle":
            idle()
    seen += [value.tolist() for value in values]
    return seen


@given(
    actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=40),
    seed=st.integers(0, 1 << 32),
    channels=st.integers(0, 6),
)
@settings(max_examples=150, deadline=None)
def test_faults_change_nothing(actions, seed, channels):
    expected = play(actions, "cpu")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "to_stderr", lambda address: lambda text: None)
        endpoint = WorkerEndpoint(Path(folder))
        script = random_script(random.Random(seed), channels, frames=6)
        session = open_on(
            FaultyTransport(InProcessTransport(endpoint), script, lambda s: None),
            ClientSettings(grace_s=60.0),
        )
        session.link.notice = lambda text: None
        try:
            assert play(actions, "remora", session.idle) == expected
            torch.remora.synchronize()
            assert endpoint.session.segments + failures(endpoint) == session.segments
        finally:
            remora.disconnect()


def failures(endpoint):
    return len(endpoint.session.skipped)
