"""Starts `remora serve` over the fake worker, and speaks to it over HTTP."""

from __future__ import annotations

import asyncio
import io
import signal
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import msgspec

from remora.wire.codec import decode_envelope, decode_to_client, encode
from remora.wire.frames import StepFrame
from remora.wire.messages import Grant, OpenSession, Refusal

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
START = f"""
import sys, typer
from remora.executor.front import worker_link
worker_link.WORKER = (sys.executable, {str(FAKE_WORKER)!r})
from remora.cli.serve import serve
typer.run(serve)
assert "torch" not in sys.modules
"""


class FrontProcess:
    def __init__(self, *options: str, patch: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", patch + START, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.line = self.process.stdout.readline().strip()
        self.url = self.line.rpartition(" ")[2]

    @property
    def folder(self) -> Path:
        for base in ("/dev/shm", "/tmp"):
            for folder in Path(base).glob(f"remora-front-{self.process.pid}-*"):
                return folder
        raise FileNotFoundError

    def received(self) -> list[str]:
        """What the worker was sent: 'KIND session'."""
        return (self.folder / "received.log").read_text().splitlines()

    def wait_received(self, line: str) -> None:
        until = time.monotonic() + 5
        while line not in self.received():
            assert time.monotonic() < until, f"the worker was not sent {line!r}"
            time.sleep(0.01)

    def stop(self) -> tuple[int, str]:
        """Ends it by its own pid; exit code and stderr."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            out, err = self.process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert out == "", "stdout is the ready line and nothing else"
        return self.process.returncode, err


@contextmanager
def front_process(*options: str, patch: str = ""):
    front = FrontProcess("--port", "0", *options, patch=patch)
    try:
        assert front.line.startswith("remora executor ready at http://127.0.0.1:"), front.stop()
        yield front
    finally:
        front.stop()


class Caller:
    """One client: an HTTP session with a token, and the grants that it got."""

    def __init__(self, url: str, token: str | None = None, authority: Path | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        trusts = ssl.create_default_context(cafile=authority) if authority else True
        self.http = aiohttp.ClientSession(
            url,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=20),
            connector=aiohttp.TCPConnector(ssl=trusts),
        )

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()

    async def open(self, **wants: object) -> Grant:
        body = msgspec.json.encode(
            OpenSession(**{"protocol": 2, "oldest_protocol": 2, "torch": "2.11.0", **wants})
        )
        async with self.http.post("/v1/sessions", data=body) as answer:
            content = await answer.read()
            assert answer.status == 200, content
            return msgspec.json.decode(content, type=Grant)

    async def ask(self, method: str, path: str, grant: Grant | None = None, **kwargs: object):
        """Status, headers and body."""
        headers = dict(kwargs.pop("headers", {}))
        if isinstance(kwargs.get("data"), bytes):
            kwargs["data"] = io.BytesIO(kwargs["data"])
        if grant is not None:
            path = f"/v1/sessions/{grant.session}{path}"
            headers["X-Remora-Secret"] = grant.secret
        async with self.http.request(method, path, headers=headers, **kwargs) as answer:
            return answer.status, answer.headers, await answer.read()

    async def connect(self, grant: Grant, epoch: int, received: int = 0) -> aiohttp.ClientWebSocketResponse:
        path = f"/v1/sessions/{grant.session}/steps?epoch={epoch}&received={received}"
        return await self.http.ws_connect(path, headers={"X-Remora-Secret": grant.secret})


def step(seq: int, *messages: object, ack: int = 0) -> bytes:
    return encode(StepFrame(seq, ack, messages))


def opened(frame: bytes):
    """(seq, ack, messages) of a reply."""
    envelope = decode_envelope(frame)
    return envelope.seq, envelope.ack, decode_to_client(bytes(envelope.messages))


def with_caller(front, scenario, token="alpha"):
    """Runs a scenario with one client of a front."""

    async def run():
        async with Caller(front.url, token) as caller:
            return await scenario(caller)

    return asyncio.run(run())


def refusal(body):
    return msgspec.json.decode(body, type=Refusal)
