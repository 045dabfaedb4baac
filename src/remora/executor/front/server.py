"""Runs a front from its first log line to its exit code."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from remora.executor.front.app import build_app
from remora.executor.front.folder import base_folder, private_folder
from remora.executor.front.front import Front, FrontOptions
from remora.executor.front.local_listener import listening_here
from remora.executor.front.receiving import Receiving
from remora.executor.front.worker_link import WorkerFailed

log = logging.getLogger("remora.front")

DRAIN_S = 5.0
IN_FLIGHT_S = 2.0  # a step sent longer ago than this, without a reply, is not waited for when draining
_READ_NBYTES = 1 << 20  # a body is read ahead this far


@dataclass(frozen=True)
class ServeOptions:
    front: FrontOptions
    host: str
    port: int  # 0: any free one
    tls: ssl.SSLContext | None = None
    until_stdin_closes: bool = False


def _not_of_peer(record: logging.LogRecord) -> bool:
    """What is no HTTP gets its 400, not a traceback in the log from everybody who reaches the port."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def run(options: ServeOptions) -> int:
    """Serves until a signal; returns the exit code."""
    logging.getLogger("aiohttp.server").addFilter(_not_of_peer)
    try:
        listener = _bind(options.host, options.port)
    except OSError as error:
        print(f"remora serve: {_bind_trouble(options, error)}", file=sys.stderr)
        return 1
    with listener, private_folder(base_folder()) as folder:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(_serve(options, listener, folder))
        except WorkerFailed as error:
            print(f"remora serve: {error}", file=sys.stderr)
            return 1
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # of listen, where two bound the port at once
                raise
            print(f"remora serve: {_bind_trouble(options, error)}", file=sys.stderr)
            return 1
    return 0


async def _serve(options: ServeOptions, listener: socket.socket, folder: Path) -> None:
    stop = asyncio.Event()
    _stop_at(stop, options.until_stdin_closes)
    front = Front(options.front, folder)
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(front.workers.run()),
        asyncio.create_task(_keep_expiring(front)),
        asyncio.create_task(stop.wait()),
    ]
    try:
        if not await _first(tasks, front.started):
            return
        async with _listening(options, front, listener) as address:
            print(f"remora executor ready at {address}", flush=True)
            await _first(tasks)
            await _drain(front)
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, WorkerFailed):
                log.error("while stopping: %r", result)


async def _first(tasks: list[asyncio.Task[Any]], event: asyncio.Event | None = None) -> bool:
    """Waits until a task ends, or the event comes (true); a task's error is raised."""
    waiter = asyncio.create_task(event.wait()) if event else None
    done, _ = await asyncio.wait([*tasks, *([waiter] if waiter else [])], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    if waiter is not None:
        waiter.cancel()
    return waiter in done and len(done) == 1


@asynccontextmanager
async def _listening(options: ServeOptions, front: Front, listener: socket.socket) -> AsyncIterator[str]:
    receiving = Receiving(front)
    runner = web.AppRunner(
        build_app(front, receiving),
        access_log=None,
        auto_decompress=False,  # a small body must not become a large one
        read_bufsize=_READ_NBYTES,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener, ssl_context=options.tls).start()
        host = f"[{options.host}]" if ":" in options.host else options.host
        async with listening_here(front, receiving):
            yield f"{'https' if options.tls else 'http'}://{host}:{listener.getsockname()[1]}"
    finally:
        await runner.cleanup()


async def _keep_expiring(front: Front) -> None:
    while True:
        await asyncio.sleep(min(1.0, front.options.lease_s / 4))
        front.expire()


async def _drain(front: Front) -> None:
    """Lets steps in flight be answered, for a while, then ends every session."""
    front.draining = True
    until = front.now() + DRAIN_S
    while front.now() < until and any(
        s.stepped_at is not None and front.now() - s.stepped_at < IN_FLIGHT_S
        for s in front.table.by_number.values()
    ):
        await asyncio.sleep(0.02)
    for session in list(front.table.by_number.values()):
        front.end(session, "executor is shutting down")
    front.pushes.close()
    await asyncio.sleep(0.1)  # for the channels to say so
    if front.background:
        await asyncio.wait(front.background)


def _stop_at(stop: asyncio.Event, until_stdin_closes: bool) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_stdin_closes:
        _stop_at_end_of_stdin(loop, stop)


def _stop_at_end_of_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    def readable() -> None:
        with suppress(BlockingIOError):
            if not os.read(fd, 4096):
                loop.remove_reader(fd)
                stop.set()

    fd = sys.stdin.fileno()
    try:
        loop.add_reader(fd, readable)
    except (OSError, NotImplementedError):  # a file or /dev/null is at its end already
        stop.set()


def _bind(host: str, port: int) -> socket.socket:
    """Takes the port before the worker starts, which is slow; nobody can connect until it listens."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind_trouble(options: ServeOptions, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {options.port} on {options.host} is taken; stop what uses it, or choose another "
            "with --port (0: any free one)"
        )
    return f"cannot listen on {options.host} port {options.port}: {error.strerror or error}"


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
