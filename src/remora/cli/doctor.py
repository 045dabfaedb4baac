"""`remora doctor`: what is in order here and on the way to the executor, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import typer
from blake3 import blake3

from remora import __version__
from remora.config import ClientSettings
from remora.errors import ConnectError, RemoraError
from remora.transport.interface import Channel, ChannelCut, Transport
from remora.transport.stream import Stream
from remora.wire.codec import decode_envelope, decode_to_client, encode
from remora.wire.limits import OLDEST_PROTOCOL, PROTOCOL
from remora.wire.messages import Barrier, Done, Failed, Grant, Lost, OpenSession, Status

ROUND_TRIPS = 20
UPLOAD_NBYTES = 64_000_000
ANSWER_S = 10.0
SLOW_ROUND_TRIP_S = 0.2
SLOW_BYTES_PER_S = 12.5e6  # 100 Mbit/s
TORCH = ((2, 11), (2, 14))  # from, below; as in pyproject.toml


class Finding(NamedTuple):
    """One line of the report. state: ok, warn or fail; `advice` says what to do, unless `detail`,
    an error's message, does."""

    name: str
    state: str
    detail: str
    advice: str = ""


def doctor(
    url: str | None = typer.Option(None, help="The executor, such as http://gpu-box:8470 [REMORA_URL]"),
    token: str | None = typer.Option(None, help="Its token [REMORA_TOKEN]"),
) -> None:
    """Check this machine, the patches of PyTorch, and the way to an executor."""
    settings = ClientSettings()
    url, token = url or settings.url, token or settings.token
    failed = False
    for finding in _findings(url, token, settings):
        typer.echo(line(finding))
        failed |= finding.state == "fail"
    if failed:
        raise typer.Exit(1)


def line(finding: Finding) -> str:
    text = f"{finding.state:<4}  {finding.name}: {finding.detail}"
    return f"{text}; {finding.advice}" if finding.advice else text


def _findings(url: str | None, token: str | None, settings: ClientSettings) -> Iterator[Finding]:
    yield from local_findings(sys.version_info[:2], installed_version)
    yield from probe_findings(_probes)
    if url is None:
        yield Finding("executor", "warn", "none given, so none checked", "give --url or set REMORA_URL")
        return
    from remora.transport.http import HttpTransport

    try:
        transport = HttpTransport(url, token, ca_file=settings.ca_file, mode=settings.transport)
    except RemoraError as error:
        yield Finding("executor", "fail", str(error))
        return
    try:
        yield from executor_findings(transport, installed_version("torch") or "", time.perf_counter)
    finally:
        transport.close()


# ------------------------------------------------------------------ this machine


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def local_findings(python: tuple[int, int], installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """Versions; `installed` tells a package's version, or None."""
    python_ok = (3, 11) <= python < (3, 14)
    yield Finding("python", *_verdict(python_ok, platform.python_version(), "use Python 3.11, 3.12 or 3.13"))
    yield Finding("remora", "ok", f"{__version__}, protocol {OLDEST_PROTOCOL} to {PROTOCOL}")
    torch = installed("torch")
    torch_ok = torch is not None and TORCH[0] <= _major_minor(torch) < TORCH[1]
    yield Finding("torch", *_verdict(torch_ok, torch or "not installed", "pip install 'torch>=2.11,<2.14'"))
    yield Finding("transformers", "ok", installed("transformers") or "not installed, and not needed")


def _verdict(ok: bool, detail: str, advice: str) -> tuple[str, str, str]:
    return ("ok", detail, "") if ok else ("fail", detail, advice)


def _major_minor(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _probes() -> list[tuple[str, bool, str]]:
    import remora

    return remora.probes()


def probe_findings(probe: Callable[[], list[tuple[str, bool, str]]]) -> Iterator[Finding]:
    """Whether each patch of PyTorch holds; `probe` tells (name, ok, detail) of each."""
    try:
        probes = probe()
    except Exception as error:  # the finding is that it cannot even be asked
        yield Finding("patches", "fail", f"{type(error).__name__}: {error}", "reinstall torch and remora")
        return
    for name, ok, detail in probes:
        state, detail, advice = _verdict(ok, detail, "this torch may be newer than Remora knows; report it")
        yield Finding(f"patch {name}", state, detail, advice)


# ------------------------------------------------------------------ the executor


def executor_findings(transport: Transport, torch: str, clock: Callable[[], float]) -> Iterator[Finding]:
    """Reachability, versions, round trip and bandwidth, over a session that is closed again."""
    try:
        status = transport.status(ANSWER_S)
    except RemoraError as error:
        yield Finding("executor", "fail", str(error))
        return
    yield Finding("executor", "ok", f"{status.executor} at {transport.address}, {status.device}")
    yield from version_findings(status, torch)
    try:
        grant = transport.open_session(OpenSession(PROTOCOL, OLDEST_PROTOCOL, torch, "doctor"), ANSWER_S)
    except RemoraError as error:
        yield Finding("session", "fail", str(error))
        return
    try:
        yield _checked("round trip", lambda: _round_trip(transport, grant, clock))
        yield _checked("bandwidth", lambda: _bandwidth(transport, grant, clock))
    finally:
        closed = _checked("session", lambda: _close(transport, grant))
    yield closed


def version_findings(status: Status, torch: str) -> Iterator[Finding]:
    """Compares the executor's versions with ours."""
    talks = OLDEST_PROTOCOL <= status.protocol <= PROTOCOL + 1
    detail = f"{status.protocol} there, {PROTOCOL} here"
    yield Finding("protocol", *_verdict(talks, detail, "install remora versions at most one protocol apart"))
    if not torch or _major_minor(torch) == _major_minor(status.torch):
        yield Finding("torch there", "ok", status.torch)
    else:
        advice = "ops whose schemas differ are decomposed or refused by name; equal versions avoid that"
        yield Finding("torch there", "warn", f"{status.torch}, here {torch}", advice)


def _checked(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except (RemoraError, ChannelCut) as error:
        return Finding(name, "fail", str(error))


def _round_trip(transport: Transport, grant: Grant, clock: Callable[[], float]) -> Finding:
    channel, _ = transport.open_channel(grant, grant.epoch, 0, ANSWER_S)
    try:
        stream = Stream()
        times_s = [_one_round_trip(channel, stream, ticket, clock) for ticket in range(1, ROUND_TRIPS + 1)]
    finally:
        channel.close()
    median_s = statistics.median(times_s)
    detail = f"{median_s * 1e3:.2f} ms (median of {ROUND_TRIPS}, from {min(times_s) * 1e3:.2f})"
    if median_s > SLOW_ROUND_TRIP_S:
        return Finding(
            "round trip", "warn", detail, "each value that a script reads waits so long; move closer"
        )
    return Finding("round trip", "ok", detail)


def _one_round_trip(channel: Channel, stream: Stream, ticket: int, clock: Callable[[], float]) -> float:
    """Seconds from a Barrier's sending to its Done: the way of a step through front and worker."""
    started_s = clock()
    channel.send(stream.send(encode((Barrier(ticket),))))
    while clock() - started_s < ANSWER_S:
        frame = channel.receive(ANSWER_S)
        if frame is None:
            continue
        envelope = decode_envelope(frame)
        if not stream.receive(envelope):
            continue
        for message in decode_to_client(bytes(envelope.messages)):
            match message:
                case Done(answered) if answered == ticket:
                    return clock() - started_s
                case Failed(message=reason) | Lost(reason):
                    raise ConnectError(reason)
    raise ConnectError(f"no answer to a step within {ANSWER_S:.0f} s")


def _bandwidth(transport: Transport, grant: Grant, clock: Callable[[], float]) -> Finding:
    data = os.urandom(UPLOAD_NBYTES)
    started_s = clock()
    transport.put_blob(grant, blake3(data).hexdigest(), memoryview(data))
    elapsed_s = clock() - started_s
    bytes_per_s = UPLOAD_NBYTES / elapsed_s
    detail = f"{bytes_per_s / 1e6:.0f} MB/s up ({UPLOAD_NBYTES / 1e6:.0f} MB in {elapsed_s:.2f} s)"
    if bytes_per_s < SLOW_BYTES_PER_S:
        advice = f"8 GB of weights take {8e9 / bytes_per_s / 60:.0f} minutes the first time; they stay there"
        return Finding("bandwidth", "warn", detail, advice)
    return Finding("bandwidth", "ok", detail)


def _close(transport: Transport, grant: Grant) -> Finding:
    transport.close_session(grant, ANSWER_S)
    return Finding("session", "ok", "opened and closed")
