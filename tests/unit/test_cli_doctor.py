"""`remora doctor`: its findings, from a machine and an executor that the test describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest
from typer.testing import CliRunner

from remora.cli import doctor as command
from remora.cli.doctor import (
    Finding,
    executor_findings,
    line,
    local_findings,
    probe_findings,
    version_findings,
)
from remora.cli.main import app
from remora.errors import AuthError, Refused
from remora.transport.stream import Stream
from remora.wire.codec import decode_envelope, decode_to_executor, encode
from remora.wire.messages import Barrier, BlobAnswer, Done, Grant, Lost, OpenSession, Status

STATUS = Status("e1", "0.1.0", 2, "2.13.0", "cpu", 1.0, 1 << 30, 0, 0, 1, {})
GRANT = Grant("s", "secret", 1, "e1", 2, "2.13.0", "cpu", "", 900.0, 1 << 30, 64, 1 << 20, "ann")


class Answering:
    """A channel whose peer answers each Barrier at once, or says that the session is lost."""

    bytes_sent = bytes_received = 0
    heard_at = 0.0

    def __init__(self, lost: bool) -> None:
        self.lost, self.stream, self.closed = lost, Stream(), False
        self.waiting: list[bytes] = []

    def send(self, frame: bytes) -> None:
        envelope = decode_envelope(frame)
        assert self.stream.receive(envelope)
        (barrier,) = decode_to_executor(bytes(envelope.messages))
        assert isinstance(barrier, Barrier)
        answer = Lost("worker died") if self.lost else Done(barrier.ticket)
        self.waiting += [self.stream.ack_frame(), self.stream.send(encode((answer,)))]

    def receive(self, timeout_s: float) -> bytes | None:
        return self.waiting.pop(0) if self.waiting else None

    def ping(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Executor:
    """A transport to an executor that grants everything, unless told otherwise."""

    address = "http://a:1"
    bytes_sent = bytes_received = 0

    def __init__(self, refusal: Exception | None = None, lost: bool = False) -> None:
        self.refusal, self.lost, self.closed, self.put_nbytes = refusal, lost, 0, 0

    def status(self, timeout_s: float) -> Status:
        if isinstance(self.refusal, AuthError):
            raise self.refusal
        return STATUS

    def open_session(self, wants: OpenSession, timeout_s: float) -> Grant:
        if self.refusal:
            raise self.refusal
        return GRANT

    def open_channel(
        self, grant: Grant, epoch: int, received: int, timeout_s: float
    ) -> tuple[Answering, int]:
        return Answering(self.lost), 0

    def put_blob(
        self, grant: Grant, digest: str, data: memoryview, progress: Callable[[int], None] | None = None
    ) -> None:
        self.put_nbytes += data.nbytes

    def close_session(self, grant: Grant, timeout_s: float) -> None:
        self.closed += 1

    def query_blobs(self, grant: Grant, digests: tuple[str, ...]) -> BlobAnswer:
        raise NotImplementedError

    def prove_blobs(self, grant: Grant, proofs: dict[str, str]) -> None: ...

    def get_bulk(self, grant: Grant, bulk: str, into: memoryview) -> None: ...

    def op_table(self, timeout_s: float) -> dict[str, str]:
        return {}

    def close(self) -> None: ...


def _ticking(step_s: float) -> Callable[[], float]:
    ticks = count()
    return lambda: next(ticks) * step_s


def _states(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def test_healthy_executor_is_ok_and_left_clean() -> None:
    executor = Executor()
    found = {one.name: one for one in executor_findings(executor, "2.13.1", _ticking(0.001))}
    assert {one.state for one in found.values()} == {"ok"}
    assert "64 MB in 0.00 s" in found["bandwidth"].detail
    assert found["round trip"].detail.endswith("ms (median of 20, from 3.00)")
    assert (executor.put_nbytes, executor.closed) == (64_000_000, 1)


def test_slow_link_is_warned_about() -> None:
    states = _states(executor_findings(Executor(), "2.13.0", _ticking(6.0 / 2)))
    assert (states["round trip"], states["bandwidth"]) == ("warn", "ok")
    states = _states(executor_findings(Executor(), "2.13.0", _ticking(6.0)))
    assert states["bandwidth"] == "warn"


def test_lost_session_fails_and_is_still_closed() -> None:
    executor = Executor(lost=True)
    found = {one.name: one for one in executor_findings(executor, "2.13.0", _ticking(0.001))}
    assert found["round trip"] == Finding("round trip", "fail", "worker died")
    assert found["bandwidth"].state == "ok"
    assert executor.closed == 1


def test_refused_token_ends_the_check() -> None:
    found = list(
        executor_findings(Executor(AuthError("http://a:1: the token is wrong")), "2.13.0", _ticking(0.001))
    )
    assert found == [Finding("executor", "fail", "http://a:1: the token is wrong")]


def test_refused_session_ends_the_check() -> None:
    states = _states(executor_findings(Executor(Refused("full")), "2.13.0", _ticking(0.001)))
    assert states == {"executor": "ok", "protocol": "ok", "torch there": "ok", "session": "fail"}


def test_other_torch_there_is_a_warning() -> None:
    assert _states(version_findings(STATUS, "2.11.0")) == {"protocol": "ok", "torch there": "warn"}


@pytest.mark.parametrize(
    ("torch", "state"),
    [("2.13.0+cpu", "ok"), ("2.11.0a0", "ok"), ("2.10.1", "fail"), ("2.14.0", "fail"), (None, "fail")],
)
def test_torch_outside_of_the_range_fails(torch: str | None, state: str) -> None:
    found = _states(local_findings((3, 12), {"torch": torch}.get))
    assert (found["python"], found["torch"]) == ("ok", state)
    assert _states(local_findings((3, 14), {"torch": torch}.get))["python"] == "fail"


def test_line_says_what_to_do() -> None:
    assert line(Finding("torch", "fail", "2.1", "install it")) == "fail  torch: 2.1; install it"
    assert line(Finding("torch", "ok", "2.13")) == "ok    torch: 2.13"


def test_probes_are_findings() -> None:
    probes = [("generator", True, "draws"), ("pin_memory", False, "changed in 2.14")]
    good, bad = probe_findings(lambda: probes)
    assert good == Finding("patch generator", "ok", "draws")
    assert line(bad).startswith("fail  patch pin_memory: changed in 2.14; ")


def test_probes_that_cannot_be_asked_are_a_finding() -> None:
    def broken() -> list[tuple[str, bool, str]]:
        raise ImportError("libtorch.so is missing")

    (found,) = probe_findings(broken)
    assert (found.state, found.detail) == ("fail", "ImportError: libtorch.so is missing")


@pytest.mark.parametrize(("holds", "code"), [(True, 0), (False, 1)])
def test_failed_finding_fails_the_command(monkeypatch: pytest.MonkeyPatch, holds: bool, code: int) -> None:
    monkeypatch.setattr(command, "_probes", lambda: [("generator", holds, "as expected")])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == code
    assert f"{'ok  ' if holds else 'fail'}  patch generator: as expected" in result.stdout
    assert "warn  executor: none given" in result.stdout


def test_no_executor_fails_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_probes", list)
    result = CliRunner().invoke(app, ["doctor", "--url", "http://127.0.0.1:1"])
    assert result.exit_code == 1
    assert "fail  executor: http://127.0.0.1:1" in result.stdout
