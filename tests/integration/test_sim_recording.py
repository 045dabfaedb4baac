"""A real program is recorded, and the simulator meets it again: what it said, what it took, and nothing it held."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import remora
from remora.cli.main import app
from remora.errors import UsageError
from remora.plan import trace
from remora.sim.scenario import Scenario, simulated

STEPS = 40
SECRET = 123456.789


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The trace of a loop of STEPS reads, and the bytes that its session sent."""
    path = tmp_path_factory.mktemp("trace") / "loop.jsonl"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("REMORA_RECORD", str(path))
        remora.connect()
    try:
        weight, x = torch.full((16, 16), SECRET).to("remora"), torch.ones(4, 16).to("remora")
        for _ in range(STEPS):
            x = torch.tanh(x @ weight)
            bool((x > 2).any())
        sent = remora.stats().bytes_sent
    finally:
        remora.disconnect()
    return path, sent


def test_a_trace_has_the_program_and_no_contents(recorded: tuple[Path, int]) -> None:
    events = list(trace.read(recorded[0]))
    assert isinstance(events[0], trace.Head)
    assert isinstance(events[-1], trace.End)
    assert sum(isinstance(event, trace.Read) for event in events) == STEPS
    assert {event.nbytes for event in events if isinstance(event, trace.Put)} == {1024, 256}
    runs = Counter(event.template for event in events if isinstance(event, trace.Took))
    assert max(runs.values()) == 8  # of 40: the first ones but one, and two later ones
    content = torch.tensor([SECRET]).numpy().tobytes()
    raw = recorded[0].read_bytes()
    assert content not in raw
    assert str(SECRET).encode() not in raw


def test_the_simulator_says_the_same_messages(recorded: tuple[Path, int]) -> None:
    path, sent = recorded
    found = simulated(path, Scenario())
    assert sum(phase.programs for phase in found.phases) == STEPS
    # the session's own bytes hold marks, acknowledgements and HTTP heads of opening too
    assert 0.3 * sent < found.outcome.sent_nbytes < 1.1 * sent
    far = simulated(path, Scenario(rtt_s=0.1, run_ahead=False))
    assert far.outcome.seconds - found.outcome.seconds == pytest.approx(0.1 * STEPS, rel=0.1)
    ahead = simulated(path, Scenario(rtt_s=0.1))
    assert ahead.outcome.seconds < far.outcome.seconds / 2


def test_the_command_is_deterministic_and_sweeps(recorded: tuple[Path, int]) -> None:
    words = [
        "sim",
        str(recorded[0]),
        "--sweep",
        "rtt=0,20",
        "--placement",
        "local,blind",
        "--executors",
        "2",
        "--json",
    ]
    outputs = [CliRunner().invoke(app, words) for _ in range(2)]
    assert outputs[0].exit_code == 0, outputs[0].output
    assert outputs[0].output == outputs[1].output
    points = json.loads(outputs[0].output)["points"]
    assert [point["where"] for point in points] == [
        {"rtt": rtt, "placement": policy} for rtt in ("0", "20") for policy in ("local", "blind")
    ]
    local, blind = points[:2]
    assert local["pushed_nbytes"] == 0 < blind["pushed_nbytes"]
    assert local["seconds_sigma"] > 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "is empty"),
        (b'{"is":"end","own_s":0}\n', "begins with its head"),
        (b"nonsense\n", ":1: no event"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, line: bytes, says: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(line)
    with pytest.raises(UsageError, match=says):
        simulated(path, Scenario())


def test_a_trace_of_another_version_is_refused(recorded: tuple[Path, int], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(recorded[0].read_bytes().replace(b'"version":1', b'"version":99', 1))
    with pytest.raises(UsageError, match="version 99"):
        simulated(path, Scenario())
