"""A hostile client, or a hostile peer, on the routes between executors."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import struct
import threading
import time
from contextlib import contextmanager

import msgspec
import pytest
from executor_process import ExecutorProcess, executor_process, status_until
from lane import lanes

from remora.wire.codec import encode
from remora.wire.messages import Await, Barrier, Done, Peer, Push, Pushed, Recover
from remora.wire.parcel import Parcel, Part

PUSH = "00112233aabbccdd"
SECRET_PAGE = "the-metadata-of-this-cloud"


@pytest.fixture(scope="module")
def executor():
    with executor_process("--memory", "256MiB") as executor:
        yield executor


@pytest.fixture(scope="module")
def other():
    with executor_process("--memory", "256MiB") as executor:
        yield executor


class Listener:
    """Something else on the network: notes what it is sent and answers with `answer`."""

    def __init__(self, answer: bytes) -> None:
        self.received: list[bytes] = []
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            peer.settimeout(0.3)
            got = b""
            try:
                while True:
                    piece = peer.recv(1 << 16)
                    if not piece:
                        break
                    got += piece
                    if b"\r\n\r\n" in got and self._answer:
                        peer.sendall(self._answer)
            except OSError:
                pass
            self.received.append(got)
            peer.close()

    def close(self) -> None:
        self._server.close()


@contextmanager
def listener(answer: bytes):
    made = Listener(answer)
    try:
        yield made
    finally:
        made.close()


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


PAGE = json.dumps({"kind": "x", "message": SECRET_PAGE}).encode()
REFUSED = ok(PAGE).replace(b"200 OK", b"403 Forbidden")
REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: %s/v1/status\r\nContent-Length: 0\r\n\r\n"


# ---------------------------------------------------------------- an executor as somebody's tool


@pytest.mark.parametrize(
    "answer",
    [
        ok(SECRET_PAGE.encode()),
        ok(PAGE, "X-Remora-Proof: 0"),
        REFUSED,
        b"+PONG " + SECRET_PAGE.encode() + b"\r\n",
    ],
    ids=["page", "wrong proof", "refusal", "no http"],
)
def test_what_is_no_executor_gets_one_fixed_question_and_its_answer_is_not_told(executor, answer):
    async def attack():
        async with lanes(executor.url) as (lane,):
            await lane.send(Peer(0, found.url, "abc123", "secretsecret"))
            name = await lane.put(1, *struct.unpack("<4f", b"\r\nFLUSHALL\r\n\r\n\r\n"[:16]))
            return await lane.push(0, name)

    with listener(answer) as found:
        failed = asyncio.run(attack())
    assert failed.kind in ("refused", "unreachable")
    assert SECRET_PAGE not in failed.message
    assert len(failed.message) < 700
    time.sleep(0.4)
    assert found.received
    for request in found.received:
        assert request.startswith(b"GET /v1/sessions/abc123/values?nonce=")
        assert request.endswith(b"\r\n\r\n")
        assert b"FLUSHALL" not in request
        assert b"secretsecret" not in request


def test_a_redirect_is_not_followed(executor):
    async def attack():
        async with lanes(executor.url) as (lane,):
            await lane.send(Peer(0, first.url, "abc123", "secretsecret"))
            return await lane.push(0, await lane.put(1, 1.0))

    with listener(ok(b"")) as target, listener(REDIRECT % target.url.encode()) as first:
        failed = asyncio.run(attack())
        assert failed.kind == "refused"
        time.sleep(0.2)
        assert target.received == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://169.254.169.254", "at no address that may be spoken to"),
        ("http://10.11.12.13:22", "at no address that may be spoken to"),
        ("http://127.0.0.1:1/latest/meta-data", "has a path"),
        ("file:///etc/passwd", "use http or https"),
        ("http://127.0.0.1:1\r\nX: y/", "is not a URL"),
        ("http://a:b@127.0.0.1", "holds a password"),
    ],
)
def test_an_executor_on_loopback_speaks_to_nothing_else(executor, url, why):
    async def attack():
        async with lanes(executor.url) as (lane,):
            await lane.send(Peer(0, url, "abc123", "secretsecret"))
            started = time.monotonic()
            failed = await lane.push(0, await lane.put(1, 1.0))
            return failed, time.monotonic() - started

    failed, took_s = asyncio.run(attack())
    assert why in failed.message
    assert took_s < 1


@pytest.mark.parametrize(
    ("peers", "allowed"), [("none", False), ("127.0.0.1:{port}", True), ("127.0.0.1:1", False)]
)
def test_the_operator_says_which_peers(other, peers, allowed):
    async def scenario():
        async with lanes(ours.url, other.url) as (a, b):
            await a.peer(0, b)
            return await a.push(0, await a.put(1, 1.0))

    with executor_process("--memory", "256MiB", "--peers", peers.format(port=other.port)) as ours:
        answer = asyncio.run(scenario())
    if allowed:
        assert isinstance(answer, Pushed)
    else:
        assert (answer.kind, "--peers" in answer.message) == ("refused", True)


def test_a_list_of_peers_that_is_none_stops_the_start():
    with pytest.raises(AssertionError, match="--peers: 'a:b' is not HOST or HOST:PORT"):
        ExecutorProcess("--peers", "a:b")


def test_peers_that_do_not_answer_delay_their_own_pushes_only(executor, other):
    async def attack():
        async with lanes(executor.url, other.url) as (lane, good):
            name = await lane.put(1, 1.0)
            for index in range(1, 5):
                await lane.send(Peer(index, silent.url, "abc123", "secretsecret"))
            for turn in range(60):
                await lane.start_push(1 + turn % 4, name)
            await lane.peer(0, good)
            started = time.monotonic()
            assert isinstance(await lane.push(0, name), Pushed)
            assert await lane.floats(name) == (1.0,)
            return time.monotonic() - started

    with listener(b"") as silent:
        assert asyncio.run(attack()) < 2


# ---------------------------------------------------------------- the push secret


def test_a_push_secret_opens_nothing_but_pushes(executor):
    async def attack():
        async with lanes(executor.url, executor.url) as (mine, theirs):
            stolen = {"X-Remora-Secret": theirs.grant.push_secret}
            session = f"/v1/sessions/{theirs.grant.session}"
            for method, path in [
                ("DELETE", session),
                ("POST", f"{session}/steps?epoch=5&received=0"),
                ("GET", f"{session}/bulk/x"),
                ("POST", f"{session}/blobs/query"),
            ]:
                status, _, body = await mine.caller.ask(method, path, headers=stolen)
                assert (status, b"not yours" in body) == (404, True), (method, path, body)
            for secret in (mine.grant.push_secret, theirs.grant.secret, "", "é"):
                headers = {"X-Remora-Secret": secret}
                for path in ("values?header=4", "abandon"):
                    status, _, body = await mine.caller.ask(
                        "POST", f"{session}/{path}", headers=headers, data=b"1234"
                    )
                    assert (status, b"another push secret" in body) == (404, True)
            name = await theirs.put(1, 1.0)
            assert await theirs.floats(name) == (1.0,)

    asyncio.run(attack())


def test_web_pages_push_nothing(executor):
    async def attack():
        async with lanes(executor.url) as (lane,):
            headers = {"X-Remora-Secret": lane.grant.push_secret, "Origin": "http://evil.example"}
            path = f"/v1/sessions/{lane.grant.session}/abandon"
            return (await lane.caller.ask("POST", path, headers=headers, json={"names": []}))[0]

    assert asyncio.run(attack()) == 401


# ---------------------------------------------------------------- bodies


def post(lane, head: bytes, body: bytes, header_nbytes: int | None = None, length: int | None = None):
    """One raw POST; the status and the body of the answer."""
    host, _, port = lane.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    path = f"/v1/sessions/{lane.grant.session}/values?header={len(head) if header_nbytes is None else header_nbytes}"
    connection.putrequest("POST", path)
    connection.putheader("X-Remora-Secret", lane.grant.push_secret)
    connection.putheader("Content-Length", str(len(head) + len(body) if length is None else length))
    connection.endheaders()
    connection.send(head + body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def head_of(nbytes: int = 16, push: str = PUSH, **changes: object) -> bytes:
    part = msgspec.structs.replace(Part((1, 0, 0), 0, "float32", (nbytes // 4,), (1,), 0), **changes)
    return encode(Parcel(push, (nbytes,), (part,)))


@pytest.mark.parametrize(
    ("head", "body", "options", "status"),
    [
        (b"\xc1" * 10, b"", {}, 400),
        (head_of(), bytes(12), {}, 400),
        (head_of(shape=(5,)), bytes(16), {}, 400),
        (head_of(offset=1), bytes(16), {}, 400),
        (head_of(dtype="object"), bytes(16), {}, 400),
        (head_of(), bytes(16), {"header_nbytes": 0}, 400),
        (head_of(), bytes(16), {"header_nbytes": 1 << 30}, 400),
        (head_of(), bytes(16), {"length": 1 << 50}, 413),
        (head_of(1 << 38), b"", {"length": len(head_of(1 << 38)) + (1 << 38)}, 507),
    ],
)
def test_a_body_is_refused_before_memory_is_taken(executor, head, body, options, status):
    async def attack():
        async with lanes(executor.url) as (lane,):
            answer = await asyncio.to_thread(post, lane, head, body, **options)
            assert await lane.floats(await lane.put(9, 1.0)) == (1.0,)
            return answer

    found, content = asyncio.run(attack())
    assert found == status, content
    assert msgspec.json.decode(content)["message"]
    assert executor.status().workers_started == 1
    assert executor.status().used_nbytes < 1 << 20


def test_the_same_push_twice_makes_one_value(executor):
    async def attack():
        async with lanes(executor.url) as (lane,):
            for _ in range(3):
                assert (await asyncio.to_thread(post, lane, head_of(), struct.pack("<4f", 1, 2, 3, 4)))[
                    0
                ] == 204
            await lane.wait((1, 0, 0))
            assert await lane.floats((1, 0, 0)) == (1, 2, 3, 4)
            assert not lane.got

    asyncio.run(attack())


def half_sent(executor, lane, head: bytes, nbytes: int) -> socket.socket:
    """A push of `nbytes` that stops after 2 MiB."""
    hanging = socket.create_connection(("127.0.0.1", executor.port))
    hanging.sendall(
        f"POST /v1/sessions/{lane.grant.session}/values?header={len(head)} HTTP/1.1\r\nHost: x\r\n"
        f"X-Remora-Secret: {lane.grant.push_secret}\r\nContent-Length: {len(head) + nbytes}\r\n\r\n".encode()
        + head
        + bytes(2 << 20)
    )
    return hanging


def test_a_second_try_takes_over_from_one_that_hangs(executor):
    async def attack():
        async with lanes(executor.url) as (lane,):
            nbytes = 4 << 20
            head = head_of(nbytes)
            hanging = half_sent(executor, lane, head, nbytes)
            await asyncio.sleep(0.3)
            body = struct.pack("<f", 2.0) * (1 << 20)
            assert (await asyncio.to_thread(post, lane, head, body))[0] == 204
            hanging.close()
            await lane.wait((1, 0, 0))
            assert set(await lane.floats((1, 0, 0))) == {2.0}

    asyncio.run(attack())
    status_until(executor, lambda status: status.used_nbytes == 0)


def test_a_session_that_ends_in_the_middle_leaves_nothing(executor):
    async def attack():
        async with lanes(executor.url, executor.url) as (lane, _):
            nbytes = 8 << 20
            head = head_of(nbytes)
            hanging = half_sent(executor, lane, head, nbytes)
            await asyncio.sleep(0.3)
            assert executor.status().used_nbytes >= nbytes
            await lane.caller.ask("DELETE", "", lane.grant)
            await asyncio.sleep(0.2)
            assert executor.status().used_nbytes == 0
            hanging.sendall(bytes(6 << 20))
            hanging.settimeout(5)
            assert b"is over" in hanging.recv(4096)
            hanging.close()

    asyncio.run(attack())


def test_names_that_make_no_sense(executor):
    async def attack():
        async with lanes(executor.url) as (lane,):
            await lane.send(Peer(0, lane.url, lane.grant.session, lane.grant.push_secret))
            name = await lane.put(1, 1.0)
            for names in ((1, 0), (), name * 2, name * 5000):
                await lane.send(Push(50 + len(names), 0, names))
                answer = await lane.answer(50 + len(names))
                assert answer.kind == "value"
            await lane.send(Await((1, 0)))
            failed = await lane.failed()
            assert failed.kind == "protocol"
            await lane.send(Recover(failed.failure))
            ticket = await lane.start_push(0, name)  # to itself: it exists there
            assert isinstance(await lane.answer(ticket), Pushed)
            await lane.send(Await(name))
            failed = await lane.failed()
            assert "exists already" in failed.message
            await lane.send(Recover(failed.failure), Barrier(99))
            assert isinstance(await lane.answer(99), Done)

    asyncio.run(attack())
