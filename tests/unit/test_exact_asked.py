"""What a client asks for with `exact`, and what it does where nobody knows the question."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
import torch  # noqa: F401 - before remora, as programs do

from remora.config import ClientSettings
from remora.errors import UsageError
from remora.session.connect import _as_asked, wants
from remora.session.stats import Stats
from remora.wire.messages import Grant

GRANT = {
    "session": "s", "secret": "x", "epoch": 1, "executor": "e", "protocol": 3, "torch": "2.13", "device": "cuda:0",
    "ops_digest": "", "lease_s": 1.0, "memory_nbytes": 1, "in_flight_frames": 1, "in_flight_nbytes": 1,
    "principal": "t/u",
}  # fmt: skip


def test_exact_is_the_default_and_the_environment_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REMORA_EXACT", raising=False)
    assert ClientSettings().exact
    monkeypatch.setenv("REMORA_EXACT", "0")
    assert not ClientSettings().exact
    assert wants().exact
    assert not wants(exact=False).exact


def test_an_executor_that_does_not_know_the_question_is_refused() -> None:
    old = msgspec.convert(GRANT, Grant)  # as one of before says it
    exact = ClientSettings()
    _as_asked(old, replace(exact, exact=True), "http://gpu")
    with pytest.raises(UsageError, match="http://gpu does not know exact=False"):
        _as_asked(old, replace(exact, exact=False), "http://gpu")
    _as_asked(msgspec.convert({**GRANT, "exact": False}, Grant), replace(exact, exact=False), "http://gpu")


def test_several_executors_are_exact_if_all_are() -> None:
    assert (Stats() + Stats()).exact
    assert not (Stats() + Stats(exact=False)).exact
    assert not (Stats(exact=False) - Stats()).exact
