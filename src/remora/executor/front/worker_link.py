"""The front's end of the hop: one worker process, its packets, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from remora.executor.hop import (
    BEAT,
    BEAT_AT,
    HEADER,
    MAX_PACKET_NBYTES,
    MISCONFIGURED_EXIT,
    OPS,
    OPS_AT,
    PROGRESS,
    Fatal,
    Kind,
    WorkerReady,
    packet,
)

log = logging.getLogger("remora.front")

WORKER = (sys.executable, "-m", "remora.executor.worker")
START_TIMEOUT_S = 300.0
QUEUED_NBYTES = 64 << 20  # waiting for the worker; beyond it the front stops reading steps
STUCK_S = 15.0  # without a beat of the worker's heart, which beats four times a second whatever it runs
_LOOKS = 10  # in that time: what counts is how often we looked, so that a front that was stopped itself is no proof


class WorkerFailed(Exception):
    """The worker ended before it was ready."""


class WorkerMisconfigured(WorkerFailed):
    """It would do so each time."""


@dataclass(frozen=True)
class Progress:
    """What the worker was running when it ended; session 0: nothing. op: its name, if it is known."""

    session: int
    segment: int
    row: int
    op: str = ""


@dataclass(frozen=True)
class WorkerOptions:
    """ops: modules that define the operators which clients may use beside PyTorch's own."""

    device: str
    memory_nbytes: int
    threads: int
    max_workers: int = 8  # at once; one a tenant
    ops: tuple[str, ...] = ()


class WorkerLink(asyncio.Protocol):
    """Starts a worker in `folder` and speaks packets with it; `on_packet` gets every one after READY.

    fatal: what broke the device, if the worker said so before it ended.
    """

    def __init__(
        self, folder: Path, options: WorkerOptions, on_packet: Callable[[WorkerLink, Kind, int, bytes], None]
    ) -> None:
        self.folder = folder
        self._options = options
        self._on_packet = on_packet
        self._buffer = bytearray()
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.WriteTransport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stuck = False
        self.fatal: tuple[int, Fatal] | None = None  # session and last words
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[WorkerReady] = loop.create_future()
        self._cut: asyncio.Future[None] = loop.create_future()

    async def start(self) -> WorkerReady:
        """Raises WorkerFailed with the reason."""
        self.folder.mkdir(mode=0o700)
        (self.folder / "progress").write_bytes(bytes(PROGRESS.size))
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # the front's stdout is its ready line and nothing else
                start_new_session=True,  # Ctrl-C is for the front, which then ends its worker
                env={**os.environ, "REMORA_EXECUTOR": "1"},
            )
        finally:
            theirs.close()
        ours.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        exit = asyncio.create_task(self._process.wait())
        events: list[asyncio.Future[Any]] = [self._ready, self._cut, exit]
        done, _ = await asyncio.wait(events, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        exit.cancel()
        if self._ready in done:
            return self._ready.result()
        ended = await self._stop()
        if self._process.returncode == MISCONFIGURED_EXIT:
            raise WorkerMisconfigured("the worker cannot do what it was asked to")
        raise WorkerFailed(ended if done else f"it was not ready after {START_TIMEOUT_S:g} s")

    def _command(self, fd: int) -> list[str]:
        named = {
            "--fd": fd,
            "--folder": self.folder,
            "--device": self._options.device,
            "--memory": self._options.memory_nbytes,
            "--threads": self._options.threads,
        }
        words = [*named.items(), *(("--ops", module) for module in self._options.ops)]
        return [*WORKER, *(str(word) for pair in words for word in pair)]

    def send(self, kind: Kind, session: int, payload: bytes | msgspec.Struct = b"") -> None:
        """Queues a packet; one to a dead worker vanishes, its sessions are told anyway."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packet(kind, session, payload))

    async def writable(self) -> None:
        """Waits while too much is queued for the worker."""
        await self._writable.wait()

    @property
    def full(self) -> bool:
        return not self._writable.is_set()

    async def ended(self) -> str:
        """Waits for the worker's end, and ends it if it is stuck; says how it ended."""
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.shield(self._cut)
        finally:
            watching.cancel()
        how = await self._stop()
        return f"no sign of life for {STUCK_S:g} s" if self._stuck else how

    async def _watch(self) -> None:
        """Kills the worker when its heart stands still: a process that is stopped keeps its socket open."""
        last, silent = self._beats(), 0
        while silent < _LOOKS:
            await asyncio.sleep(STUCK_S / _LOOKS)
            beats = self._beats()
            silent = (
                silent + 1 if beats == last and beats else 0
            )  # 0: it has no heart, as in tests of the front
            last = beats
        log.error("the worker gave no sign of life for %g s and is killed", STUCK_S)
        self._stuck = True
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()

    def _beats(self) -> int:
        content = (self.folder / "progress").read_bytes()[BEAT_AT : BEAT_AT + BEAT.size]
        return int(BEAT.unpack(content.ljust(BEAT.size, b"\0"))[0])

    def close(self) -> None:
        """Asks the worker to end."""
        if self._transport is not None:
            self._transport.close()

    async def discard(self) -> None:
        """Ends the worker if it still runs, and removes its folder."""
        if self._process is not None:
            await self._stop()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def _stop(self) -> str:
        process = self._process
        assert process is not None
        if self._transport is not None:
            self._transport.close()  # a worker ends by itself when its socket does
        try:
            await asyncio.wait_for(process.wait(), 2.0)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        code = process.returncode or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def progress(self) -> Progress:
        """Read it after the end."""
        content = (self.folder / "progress").read_bytes().ljust(OPS_AT + OPS.size, b"\0")
        session, segment, row = PROGRESS.unpack_from(content)
        (nbytes,) = OPS.unpack_from(content, OPS_AT)
        start = OPS_AT + OPS.size
        ops = content[start : start + nbytes].decode(errors="replace").split("\n")
        return Progress(session, segment, row, ops[row] if row < len(ops) else "")

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.WriteTransport, transport)  # uvloop's transports are not subclasses
        transport.set_write_buffer_limits(high=QUEUED_NBYTES)
        self._transport = transport

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._writable.set()
        if not self._cut.done():
            self._cut.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        position = 0
        while len(self._buffer) - position >= HEADER.size:
            nbytes, kind, session = HEADER.unpack_from(self._buffer, position)
            start = position + HEADER.size
            if nbytes > MAX_PACKET_NBYTES:
                self._break(f"a packet of {nbytes} bytes")
                return
            if len(self._buffer) < start + nbytes:
                break
            position = start + nbytes
            try:
                self._take(Kind(kind), session, bytes(memoryview(self._buffer)[start:position]))
            except (ValueError, msgspec.DecodeError) as error:
                self._break(str(error))
                return
        del self._buffer[:position]

    def _take(self, kind: Kind, session: int, payload: bytes) -> None:
        if not self._ready.done():
            if kind is not Kind.READY:
                raise ValueError(f"{kind.name} before READY")
            self._ready.set_result(msgspec.msgpack.decode(payload, type=WorkerReady))
            return
        if kind is Kind.FATAL:
            self.fatal = session, msgspec.msgpack.decode(payload, type=Fatal)
            return
        self._on_packet(self, kind, session, payload)

    def _break(self, why: str) -> None:
        log.error("the worker broke the hop's protocol: %s", why)
        self._buffer.clear()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
