"""`remora link`: makes networks, lists them, and removes them, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from remora.bench import netns
from remora.bench.netns import NoNamespaces
from remora.cli.main import app


def _possible() -> bool:
    try:
        netns.known()
    except NoNamespaces:
        return False
    return True


with_namespaces = pytest.mark.skipif(not _possible(), reason="needs root, Linux, ip and tc")
LINK = [sys.executable, "-m", "remora.cli", "link"]


def _says(*words: str) -> str:
    done = CliRunner().invoke(app, ["link", *words])
    assert done.exit_code == 0, done.output
    return done.output


@with_namespaces
def test_a_network_is_there_until_its_command_ends() -> None:
    with subprocess.Popen(
        [*LINK, "up", "100mbit,2ms", "--members", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().split(":")[0]
        members = [process.stdout.readline() for _ in range(2)]
        assert all("ip netns exec" in line and "2 ms each way" in line for line in members)
        assert f"{name}: of process {process.pid}, 2 members" in _says("list")
        assert f"removed {name}" in _says("down", name)
        assert process.wait(10) == 0
    assert name not in _says("list")


@with_namespaces
def test_what_a_killed_command_left_is_found_and_removed() -> None:
    with subprocess.Popen(
        [*LINK, "up", "100mbit"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().split(":")[0]
        process.send_signal(signal.SIGKILL)
    assert f"{name}: left behind by process {process.pid}" in _says("list")
    assert f"removed {name}" in _says("down")
    assert name not in _says("list")


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(app, ["link", "list"])
    assert done.exit_code == 2
    assert "need root" in done.output


def test_what_is_no_link_is_refused() -> None:
    done = CliRunner().invoke(app, ["link", "up", "fast"])
    assert done.exit_code != 0
    assert "is no link" in done.output
