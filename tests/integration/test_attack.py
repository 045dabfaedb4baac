"""A hostile client against a real executor: others go on, or are told, and the front stays up."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from pathlib import Path

import msgspec
import pytest
from executor_process import executor_process
from front_process import Caller, opened, step

from remora.ir.graph import Template
from remora.ir.node import Hole, Items, Node, Slot, Symbol
from remora.wire.messages import Barrier, Define, Done, Failed, Fetch, Lost, Put, Recover, Run, Site

ONE = b"\0\0\x80\x3f"
INTS = Hole("int")


@pytest.fixture(scope="module")
def executor():
    with executor_process("--memory", "256MiB") as executor:
        yield executor


async def replies(socket, *messages, seq=1):
    """Everything up to the first Done, Failed or Lost."""
    await socket.send_bytes(step(seq, *messages))
    found = []
    while not any(isinstance(reply, (Done, Failed, Lost)) for reply in found):
        found += opened((await socket.receive(timeout=60)).data)[2]
    return found


def with_client(executor, attack):
    async def body():
        async with Caller(executor.url) as caller:
            grant = await caller.open()
            result = await attack(caller, grant, await caller.connect(grant, 1))
            await caller.ask("DELETE", "", grant)
            return result

    return asyncio.run(body())


def test_an_error_text_does_not_end_the_worker(executor):
    async def attack(caller, grant, socket):
        node = Node(
            "aten.zeros.default", (Items((INTS,)),), (("dtype", Symbol("dtype", "device-side assert")),)
        )
        return await replies(
            socket, Define(0, Template((node,)).body), Site(0, 0), Run(1, 0, holes=(0, 1), keep=(0, 0))
        )

    (reply,) = with_client(executor, attack)
    assert reply.kind == "unsupported"
    assert executor.status().workers_started == 1


def wide(value):
    """A view with 16,000 sizes, all `value`."""
    view = Node("aten.view.default", (Slot(0), Items((INTS,) * 16_000)))
    holes = tuple(number for hole in range(16_000) for number in (hole, value))
    return (
        Put(1, "float32", (1,), ONE),
        Define(0, Template((view,)).body),
        Site(0, 0),
        Run(2, 0, (0, 0, 1, 0, 0), holes, (0, 0)),
    )


def test_many_dimensions_do_not_fill_the_hop(executor):
    async def attack(caller, grant, socket):
        return await replies(socket, *wide(1), Fetch(1, (2, 0, 0) * 4000, True))

    (reply,) = with_client(executor, attack)
    assert "16000 dimensions cannot travel" in reply.message
    assert executor.status().workers_started == 1


def test_many_long_failures_do_not_fill_the_hop(executor):
    async def attack(caller, grant, socket):
        # 400 texts of 220 KB are more than a packet may hold
        again = [message for n in range(400) for message in (Recover(1 + n), Run(3 + n, 0))]
        return await replies(socket, *wide(777_777_777_777), *again)

    assert isinstance(with_client(executor, attack)[0], Failed)
    with_client(executor, lambda caller, grant, socket: replies(socket, Barrier(1)))
    assert executor.status().workers_started == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"protocol":2,"oldest_protocol":2,"torch":"\xff\xfe"}',
        b'{"protocol":2,"oldest_protocol":2,"torch":"x","seed":1' + b"0" * 40 + b"}",
        b'{"client":' + b"[" * 200_000,
        b'{"torch":"\\ud800"}',
    ],
    ids=["utf-8", "seed", "nesting", "surrogate"],
)
def test_malformed_json_is_refused_and_leaves_no_session(executor, body):
    before = executor.status().sessions

    async def attack():
        async with Caller(executor.url) as caller:
            return await caller.ask("POST", "/v1/sessions", data=body)

    status, _, content = asyncio.run(attack())
    assert (status, msgspec.json.decode(content)["kind"]) == (400, "protocol")
    assert executor.status().sessions == before


def test_what_is_no_http_does_not_fill_the_log(executor):
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", executor.port)) as peer:
            peer.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n")
            assert b" 400 " in peer.recv(4096)
    assert "Traceback" not in executor.said()


def test_only_the_owner_reads_the_folder(executor):
    (folder,) = Path("/dev/shm").glob(f"remora-front-{executor.process.pid}-*")
    for path in (folder, *(p for p in folder.iterdir() if p.is_dir())):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700


@pytest.mark.parametrize("bulk", ["..%2fprogress", "%2fetc%2fpasswd", "progress"])
def test_a_bulk_id_is_no_path(executor, bulk):
    async def attack(caller, grant, socket):
        path = f"/v1/sessions/{grant.session}/bulk/{bulk}"
        with_secret = f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Remora-Secret: {grant.secret}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", executor.port)
        writer.write(with_secret.encode())
        answer = await reader.read(4096)
        writer.close()
        return answer

    assert b"404 Not Found" in with_client(executor, attack)


def test_a_kernel_that_crashes_ends_the_worker_and_nothing_else():
    """Memory-unsafe kernels are bounded by the worker's process."""

    async def attack(url):
        async with Caller(url) as eve, Caller(url) as bob:
            theirs, his = await eve.open(), await bob.open()
            bad, good = await eve.connect(theirs, 1), await bob.connect(his, 1)
            assert isinstance((await replies(good, Put(1, "float32", (1,), ONE), Barrier(1)))[-1], Done)
            node = Node("aten.adaptive_max_pool2d_backward.default", (Slot(0), Slot(1), Slot(2)))
            crash = (
                Put(1, "float32", (1, 2, 2), ONE * 4),
                Put(2, "float32", (1, 4, 4), ONE * 16),
                Put(3, "int64", (1, 2, 2), struct.pack("<4q", *[10**12] * 4)),
                Define(0, Template((node,)).body),
                Site(0, 0),
                Run(4, 0, (0, 0, 1, 0, 0, 1, 0, 2, 0, 0, 2, 0, 3, 0, 0), keep=(0, 0)),
            )
            (own,) = await replies(bad, *crash)
            (other,) = opened((await good.receive(timeout=20)).data)[2]
            return own, other

    with executor_process("--memory", "256MiB") as executor:
        own, other = asyncio.run(attack(executor.url))
        assert (own.segment, own.row) == (4, 0)
        assert "of this session" in own.reason
        assert other.segment == 0
        assert "while it ran aten.adaptive_max_pool2d_backward.default of another session" in other.reason
        executor.wait_worker(2)
        with_client(executor, lambda caller, grant, socket: replies(socket, Barrier(1)))
