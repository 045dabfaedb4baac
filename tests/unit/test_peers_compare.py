"""benchmarks/peers: what is made of trials, and how what hangs or crashes is cut."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remora.bench.records import Row, Sample

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "peers"))
import compare
import contestants
from compare import Entry, Workload
from contestants import Contestant, Failed, Peer, Trial

sys.path.pop(0)

GENERATE = Workload("GPT-2 124M generate", "token", (16, 8))
UPLOAD = Workload("upload of GPT-2", "upload", (1, 1), (0.0,))
LOCAL, OTHER = Peer("local", "local", "base", listens=False), Peer("SkyTorch", "skytorch", "skytorch")


def trial(seconds: float, *found: float, sent: int | None = None) -> Trial:
    return Trial(seconds, list(found), sent, None if sent is None else 2 * sent)


def entries(*theirs: Trial, failure: str = "") -> list[Entry]:
    ours = Entry(LOCAL, 0.0, trials=[trial(1.0, 5, 6), trial(2.0, 5, 7), trial(3.0, 5, 8)])
    both = [ours, Entry(OTHER, 50.0, trials=list(theirs), failure=failure)]
    compare._compare(both)
    return both


def test_results_are_compared_trial_by_trial_and_ratios_too() -> None:
    both = entries(trial(1.5, 5, 6, sent=10), trial(3.0, 5, 7, sent=20), trial(4.5, 5, 8, sent=30))
    (_, line) = compare.lines_of(GENERATE, both, 8)
    assert line["over_local"] == [1.5, 1.5, 1.5]
    assert line["equal_to_local"] is True
    assert line["bytes"] == round(60 / 8)
    (_, sample) = compare.as_records(GENERATE, both, "r", 8)
    assert isinstance(sample, Sample)
    assert (sample.arm, sample.link.by, sample.link.rtt_ms, sample.identical) == (
        "SkyTorch",
        "proxy",
        50.0,
        True,
    )
    assert sample.nbytes == {"client>0": [10, 20, 30], "0>client": [20, 40, 60]}


def test_one_token_more_than_local_is_another_result() -> None:
    both = entries(trial(1.5, 5, 6), trial(3.0, 5, 7, 0), trial(4.5, 5, 8))
    assert both[1].identical is False
    (_, sample) = compare.as_records(GENERATE, both, "r", 8)
    assert isinstance(sample, Sample)
    assert sample.identical is False
    assert sample.nbytes == {}


def test_a_failure_is_a_record_with_its_reason() -> None:
    both = entries(failure="no answer within 60 s")
    (_, row) = compare.as_records(GENERATE, both, "r", 8)
    assert isinstance(row, Row)
    assert row.measure == "GPT-2 124M generate, RTT 50 ms, failed: no answer within 60 s"
    assert row.median is None
    assert compare.lines_of(GENERATE, both, 8)[1]["failed"] == "no answer within 60 s"


def test_an_upload_is_a_rate_and_no_ratio() -> None:
    both = entries(trial(1.0, 5, 6), trial(2.0, 5, 7), trial(4.0, 5, 8))
    found = compare.as_records(UPLOAD, both, "r", 1)
    (row,) = [record for record in found if isinstance(record, Row)]
    assert row.median == pytest.approx(compare.GPT2_NBYTES / 2e6)
    assert "over_local" not in compare.lines_of(UPLOAD, both, 1)[1]


def test_peers_are_chosen_by_name_and_local_is_always_there() -> None:
    assert [peer.name for peer in contestants.chosen(["remora"])] == ["local", "remora"]
    assert len(contestants.chosen([])) == len(contestants.PEERS)
    with pytest.raises(ValueError, match="'hydra'; there is: local, remora"):
        contestants.chosen(["hydra"])


@contextmanager
def saying(program: str) -> Iterator[Contestant]:
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Contestant(process, None)
    finally:
        contestants._end(process)


def test_a_client_that_hangs_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "TRIAL_S", 0.2)
    started = time.monotonic()
    with saying("print('{}', flush=True); input(); input()") as client:
        client.ready()
        with pytest.raises(Failed, match=r"no answer within 0 s"):
            client.trial()
    assert time.monotonic() - started < 5


def test_a_client_that_ends_or_says_why_it_cannot_is_told_apart() -> None:
    with saying("raise SystemExit(3)") as client, pytest.raises(Failed, match="ended with code 3"):
        client.ready()
    with (
        saying('print(\'{"error": "no such op"}\', flush=True)') as client,
        pytest.raises(Failed, match="no such op"),
    ):
        client.ready()


def test_a_trial_is_what_the_client_says() -> None:
    with saying("print('{}'); input(); print('{\"seconds\": 0.5, \"found\": [1, 2]}')") as client:
        client.ready()
        assert client.trial() == Trial(0.5, [1, 2], None, None)
