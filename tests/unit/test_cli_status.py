"""`remora status`: what it prints, and the one line when it cannot."""

from __future__ import annotations

import json
import socket

import pytest
from typer.testing import CliRunner

from remora.cli import status as command
from remora.cli.main import app
from remora.config import ClientSettings
from remora.wire.messages import Status

STATUS = Status(
    executor="e1",
    version="0.1.0",
    protocol=1,
    torch="2.13.0",
    device="cpu",
    uptime_s=61.5,
    memory_nbytes=8 << 30,
    used_nbytes=3 << 20,
    sessions=2,
    workers_started=1,
    principals={"ann": {"bytes_in": 2048.0, "device_s": 1.25, "segments": 12.0}},
)


@pytest.fixture
def dead_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    asked: list[tuple[str, str | None]] = []

    def ask(url: str, token: str | None, settings: ClientSettings, timeout_s: float) -> Status:
        asked.append((url, token))
        return STATUS

    monkeypatch.setattr(command, "_ask", ask)
    return asked


def test_json_is_the_whole_status(answering: list[tuple[str, str | None]]) -> None:
    result = CliRunner().invoke(app, ["status", "http://a:1", "--json"], env={"REMORA_TOKEN": "t"})
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["principals"] == STATUS.principals
    assert (answer["executor"], answer["used_nbytes"], answer["sessions"]) == ("e1", 3 << 20, 2)
    assert answering == [("http://a:1", "t")]


def test_tables_speak_in_units(answering: list[tuple[str, str | None]]) -> None:
    result = CliRunner().invoke(app, ["status", "--token", "mine"], env={"REMORA_URL": "http://b:2"})
    assert result.exit_code == 0
    for words in ("e1 at http://b:2", "3.0 MiB of 8.0 GiB used", "protocol 1", "ann", "2.0 KiB"):
        assert words in result.stdout
    assert answering == [("http://b:2", "mine")]


def test_no_executor_is_one_line(dead_url: str) -> None:
    result = CliRunner().invoke(app, ["status", dead_url])
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("remora status: ")
    assert dead_url in line


def test_bad_address_is_one_line() -> None:
    result = CliRunner().invoke(app, ["status", "ftp://a"])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_no_address_says_where_to_give_it() -> None:
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 2
    assert "set REMORA_URL" in result.stderr


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 30, "1.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes_read_well(nbytes: int, text: str) -> None:
    assert command.nbytes_text(nbytes) == text
