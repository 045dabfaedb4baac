"""The front as a process, with a worker that only speaks the hop."""

import asyncio
import os
import struct
import subprocess
import sys
import time
from contextlib import suppress

import aiohttp
import msgspec
import pytest
from blake3 import blake3
from fake_worker import BULK
from front_process import START, Caller, front_process, opened, step

from remora.wire.messages import Barrier, BlobAnswer, Done, Fetch, Lost, Refusal, Seed, Status, Values

BLOB = bytes(range(256)) * 20_000
DIGEST = blake3(BLOB).hexdigest()


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    tokens = tmp_path_factory.mktemp("front") / "tokens"
    tokens.write_text("alpha acme/ann\nbeta acme/bob\ngamma other/eve\n")
    with front_process("--token-file", str(tokens)) as front:
        yield front


def with_caller(front, scenario, token="alpha"):
    async def run():
        async with Caller(front.url, token) as caller:
            return await scenario(caller)

    return asyncio.run(run())


def refusal(body):
    return msgspec.json.decode(body, type=Refusal)


# ---------------------------------------------------------------- control


def test_health_needs_no_token_and_all_else_does(front):
    async def scenario(caller):
        assert (await caller.ask("GET", "/v1/health"))[::2] == (200, b"ok")
        for method, path in [
            ("GET", "/v1/status"),
            ("GET", "/v1/ops"),
            ("POST", "/v1/sessions"),
            ("GET", "/x"),
        ]:
            status, _, body = await caller.ask(method, path)
            assert (status, refusal(body).kind) == (401, "auth")

    with_caller(front, scenario, token="wrong")
    with_caller(front, scenario, token=None)


def test_status_and_ops(front):
    async def scenario(caller):
        await caller.open()
        status = msgspec.json.decode((await caller.ask("GET", "/v1/status"))[2], type=Status)
        assert (status.device, status.torch, status.workers_started) == ("cpu", "2.11.0", 1)
        assert status.sessions >= 1
        assert all(principal.startswith("acme/") for principal in status.principals)
        assert msgspec.json.decode((await caller.ask("GET", "/v1/ops"))[2]) == {"aten.add": "d"}

    with_caller(front, scenario)


def test_a_grant_and_its_end(front):
    async def scenario(caller):
        grant = await caller.open()
        assert (grant.principal, grant.epoch, grant.memory_nbytes) == ("acme/ann", 1, 1 << 30)
        assert (await caller.ask("DELETE", "", grant))[0] == 204
        status, _, body = await caller.ask("DELETE", "", grant)
        assert (status, refusal(body).kind) == (404, "session")
        assert "closed" in refusal(body).message

    with_caller(front, scenario)


def test_refusals_are_json_with_a_reason(front):
    async def scenario(caller):
        wants = {"protocol": 9, "oldest_protocol": 8, "torch": "2"}
        status, _, body = await caller.ask("POST", "/v1/sessions", json=wants)
        assert (status, refusal(body).kind) == (426, "version")
        assert "8 to 9" in refusal(body).message
        assert "2 to 3" in refusal(body).message
        wants = {"protocol": 2, "oldest_protocol": 2, "torch": "2", "memory_nbytes": 1 << 35}
        assert (await caller.ask("POST", "/v1/sessions", json=wants))[0] == 507
        assert (await caller.ask("POST", "/v1/sessions", data=b"[1"))[0] == 400
        assert (await caller.ask("POST", "/v1/sessions", data=bytes(2 << 20)))[0] == 413
        for path in ("/nothing", "/v1/sessions/x/y"):
            assert refusal((await caller.ask("GET", path))[2]).kind == "protocol"
        status, _, body = await caller.ask("GET", "/v1/status", headers={"Origin": "http://evil.example"})
        assert (status, refusal(body).kind) == (401, "auth")

    with_caller(front, scenario)


def test_a_tenant_may_not_take_all_sessions(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("alpha acme/ann\nbeta acme/bob\ngamma other/eve\n")

    async def many(caller):
        grants = [await caller.open() for _ in range(32)]
        wants = {"protocol": 2, "oldest_protocol": 2, "torch": "2"}
        status, _, body = await caller.ask("POST", "/v1/sessions", json=wants)
        assert (status, refusal(body).kind) == (429, "limit")
        assert "tenant acme has 32 sessions" in refusal(body).message
        return grants

    async def one(caller):
        return await caller.open()

    with front_process("--token-file", str(tokens)) as front:
        with_caller(front, many)
        with_caller(front, one, token="gamma")


def test_a_silent_upload_gives_its_memory_back(tmp_path):
    async def scenario(caller):
        grant = await caller.open()
        _, writer = await connected(front)
        writer.write(put_head(front, grant, bytes(8 << 20)) + bytes(3 << 20))
        await writer.drain()
        async with asyncio.timeout(10):
            while True:
                status = msgspec.json.decode((await caller.ask("GET", "/v1/status"))[2], type=Status)
                if status.used_nbytes == 0:
                    break
                await asyncio.sleep(0.05)
        writer.transport.abort()
        assert (await caller.ask("PUT", f"/blobs/{DIGEST}", grant, data=BLOB))[0] == 204

    silence = "from remora.executor.front import front; front.UPLOAD_SILENCE_S = 0.5\n"
    with front_process(patch=silence) as front:
        with_caller(front, scenario, token=None)


# ---------------------------------------------------------------- steps


def test_steps_reach_the_worker_and_replies_come_back(front):
    async def scenario(caller):
        socket = await caller.connect(await caller.open(), epoch=1)
        await socket.send_bytes(step(1, Fetch(5, (1, 2, 3))))
        seq, ack, messages = opened(await socket.receive_bytes())
        assert (seq, ack) == (1, 1)
        assert isinstance(messages[0], Values)
        assert (messages[0].ticket, messages[0].values[0].data) == (5, b"1,2,3")
        await socket.ping()
        await socket.close()

    with_caller(front, scenario)


def test_a_cut_loses_nothing_and_repeats_nothing(front):
    async def scenario(caller):
        grant = await caller.open()
        socket = await caller.connect(grant, epoch=1)
        await socket.send_bytes(step(1, Barrier(1)))
        await socket.send_bytes(step(2, Barrier(2)))
        assert opened(await socket.receive_bytes())[2] == (Done(1),)
        assert opened(await socket.receive_bytes())[2] == (Done(2),)
        socket._response.connection.transport.abort()

        again = await caller.connect(grant, epoch=2, received=1)
        assert again._response.headers["X-Remora-Received"] == "2"
        assert opened(await again.receive_bytes())[::2] == (2, (Done(2),))
        await again.send_bytes(step(2, Barrier(2)))  # resent, though it had arrived
        await again.send_bytes(step(3, Barrier(3), ack=2))
        assert opened(await again.receive_bytes())[::2] == (3, (Done(3),))
        await again.close()

    with_caller(front, scenario)


def test_a_newer_connection_replaces_the_older(front):
    async def scenario(caller):
        grant = await caller.open()
        older = await caller.connect(grant, epoch=1)
        newer = await caller.connect(grant, epoch=2)
        assert (await older.receive()).type is aiohttp.WSMsgType.CLOSE
        assert older.close_code == 4001
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await caller.connect(grant, epoch=2)
        assert refused.value.status == 400
        await newer.send_bytes(step(1, Barrier(1)))
        assert opened(await newer.receive_bytes())[2] == (Done(1),)
        await newer.close()

    with_caller(front, scenario)


def test_a_malformed_frame_ends_the_connection_not_the_session(front):
    async def scenario(caller):
        grant = await caller.open()
        for epoch, bad in enumerate([b"\xc1", step(7, Barrier(1)), "text"], 1):
            socket = await caller.connect(grant, epoch)
            await (socket.send_str(bad) if isinstance(bad, str) else socket.send_bytes(bad))
            message = await socket.receive()
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1008)
            assert message.extra
            await socket.close()
        socket = await caller.connect(grant, epoch=4)
        await socket.send_bytes(step(1, Barrier(1)))
        assert opened(await socket.receive_bytes())[2] == (Done(1),)
        await socket.close()

    with_caller(front, scenario)


def test_received_frames_are_acknowledged_without_replies(front):
    async def scenario(caller):
        socket = await caller.connect(await caller.open(), epoch=1)
        for seq in range(1, 65):
            await socket.send_bytes(step(seq, Seed(0)))
        assert opened(await socket.receive_bytes()) == (0, 64, ())
        await socket.close()

    with_caller(front, scenario)


def test_plain_posts_do_the_same(front):
    async def post(caller, grant, received, frames, epoch=1, wait_s=5):
        body = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
        path = f"/steps?epoch={epoch}&received={received}&wait_s={wait_s}"
        status, headers, body = await caller.ask("POST", path, grant, data=body)
        assert status == 200, body
        answer = []
        while body:
            (nbytes,) = struct.unpack_from("<I", body)
            answer.append(opened(body[4 : 4 + nbytes]))
            body = body[4 + nbytes :]
        return int(headers["X-Remora-Received"]), answer

    async def scenario(caller):
        grant = await caller.open()
        assert await post(caller, grant, 0, [], wait_s=0) == (0, [])
        assert await post(caller, grant, 0, [step(1, Barrier(1))]) == (1, [(1, 1, (Done(1),))])
        assert await post(caller, grant, 0, [step(1, Barrier(1))]) == (
            1,
            [(1, 1, (Done(1),))],
        )  # answer was lost
        waiting = asyncio.create_task(post(caller, grant, 1, []))
        await asyncio.sleep(0.1)
        assert (await post(caller, grant, 1, [step(2, Barrier(2), ack=1)]))[1] == [(2, 2, (Done(2),))]
        await waiting  # let go when the newer request came
        socket = await caller.connect(grant, epoch=2, received=2)
        await socket.send_bytes(step(3, Barrier(3), ack=2))
        assert opened(await socket.receive_bytes())[2] == (Done(3),)
        await socket.close()

    with_caller(front, scenario)


# ---------------------------------------------------------------- stored bytes


def test_a_blob_is_stored_and_the_worker_knows_first(front):
    async def scenario(caller):
        grant = await caller.open()
        number = front.last_opened()
        assert (await caller.ask("PUT", f"/blobs/{DIGEST}", grant, data=BLOB))[0] == 204
        front.wait_received(f"BLOB {number}")
        assert (await caller.ask("HEAD", f"/blobs/{DIGEST}", grant))[1]["X-Remora-Offset"] == str(len(BLOB))
        assert (await caller.ask("PUT", f"/blobs/{DIGEST}?offset={len(BLOB)}", grant))[0] == 204
        empty = blake3(b"").hexdigest()
        assert (await caller.ask("PUT", f"/blobs/{empty}", grant, data=b""))[0] == 204

    with_caller(front, scenario)


def test_an_upload_goes_on_after_a_cut(front):
    data = os.urandom(6 << 20)
    digest = blake3(data).hexdigest()

    async def scenario(caller):
        grant = await caller.open()
        _, writer = await connected(front)
        writer.write(put_head(front, grant, data) + data[: 4 << 20])
        await writer.drain()
        await asyncio.sleep(0.5)  # HEAD stops the first connection, which is still open, wherever it is
        offset = int((await caller.ask("HEAD", f"/blobs/{digest}", grant))[1]["X-Remora-Offset"])
        writer.close()
        assert 0 < offset <= 4 << 20
        path = f"/blobs/{digest}?offset="
        assert (await caller.ask("PUT", f"{path}{offset - 1}", grant, data=data[offset - 1 :]))[0] == 400
        assert (await caller.ask("PUT", f"{path}{offset}", grant, data=data[offset:]))[0] == 204

    with_caller(front, scenario)


def put_head(front, grant, data, length=None):
    """The head of a PUT of `data`, as a client would write it."""
    return (
        f"PUT /v1/sessions/{grant.session}/blobs/{blake3(data).hexdigest()} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer alpha\r\nX-Remora-Secret: {grant.secret}\r\n"
        f"Content-Length: {length or len(data)}\r\n\r\n"
    ).encode()


async def connected(front):
    host, port = front.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


def test_a_connection_lives_on_after_large_bodies_right_or_wrong(front):
    """Their bytes go past aiohttp's parser; whatever follows them on the connection must be parsed again."""

    async def scenario(caller):
        grant = await caller.open()
        reader, writer = await connected(front)
        for data in [os.urandom((3 << 20) + i) for i in range(3)]:
            writer.write(put_head(front, grant, data) + data)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
            wrong = put_head(front, grant, b"else", len(data))
            writer.write(
                wrong + data + put_head(front, grant, b"small") + b"small"
            )  # and the next right after
            answer = await reader.readuntil(b'they are dropped"}')
            assert answer.startswith(b"HTTP/1.1 400")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        writer.close()

    with_caller(front, scenario)


def test_many_large_bodies_at_once(front):
    async def scenario(caller):
        grant = await caller.open()
        blobs = [os.urandom(4 << 20) for _ in range(20)]  # more than there are threads for
        paths = [f"/blobs/{blake3(data).hexdigest()}" for data in blobs]
        answers = await asyncio.gather(
            *(caller.ask("PUT", path, grant, data=data) for path, data in zip(paths, blobs, strict=True))
        )
        assert [answer[0] for answer in answers] == [204] * 20
        assert (await caller.ask("DELETE", "", grant))[0] == 204

    with_caller(front, scenario)


def test_a_sessions_end_cuts_its_upload(front):
    async def scenario(caller):
        grant = await caller.open()
        files = len(list((front.folder / "blobs").iterdir()))
        reader, writer = await connected(front)
        data = os.urandom(8 << 20)
        writer.write(put_head(front, grant, data) + data[: 5 << 20])
        await writer.drain()
        await asyncio.sleep(0.3)
        assert len(list((front.folder / "blobs").iterdir())) == files + 1
        assert (await caller.ask("DELETE", "", grant))[0] == 204
        async with asyncio.timeout(3):
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            while len(list((front.folder / "blobs").iterdir())) > files:
                await asyncio.sleep(0.01)
        writer.transport.abort()

    with_caller(front, scenario)


def test_a_stalled_upload_does_not_hold_up_the_end():
    async def scenario(caller):
        grant = await caller.open()
        _, writer = await connected(front)
        writer.write(put_head(front, grant, bytes(8 << 20)) + bytes(3 << 20))
        await writer.drain()
        await asyncio.sleep(0.3)
        started = time.monotonic()
        assert (await asyncio.to_thread(front.stop))[0] == 0
        assert time.monotonic() - started < 8
        writer.transport.abort()

    with front_process() as front:
        with_caller(front, scenario, token=None)


def test_bytes_that_are_not_the_blob_are_dropped(front):
    async def scenario(caller):
        grant = await caller.open()
        digest = blake3(b"right").hexdigest()
        files = len(list((front.folder / "blobs").iterdir()))
        status, _, body = await caller.ask("PUT", f"/blobs/{digest}", grant, data=b"wrong")
        assert (status, refusal(body).kind) == (400, "blob")
        assert len(list((front.folder / "blobs").iterdir())) == files
        assert (await caller.ask("HEAD", f"/blobs/{digest}", grant))[1]["X-Remora-Offset"] == "0"
        assert (await caller.ask("PUT", f"/blobs/{digest}", grant, data=b"right"))[0] == 204
        assert (await caller.ask("PUT", "/blobs/..%2fescape", grant, data=b"x"))[0] == 400

        async def unknown_length():
            yield b"right"

        assert (await caller.ask("PUT", f"/blobs/{digest}", grant, data=unknown_length()))[0] == 411
        status, _, body = await caller.ask(
            "PUT", f"/blobs/{digest}", grant, headers={"Content-Length": str(1 << 35)}
        )
        assert (status, refusal(body).kind) == (507, "memory")

    with_caller(front, scenario)


def test_a_blob_is_shared_inside_its_tenant_by_proof_only(front):
    async def upload(caller):
        assert (await caller.ask("PUT", f"/blobs/{DIGEST}", await caller.open(), data=BLOB))[0] == 204

    async def query(caller, grant):
        body = (await caller.ask("POST", "/blobs/query", grant, json={"digests": [DIGEST, "0" * 64]}))[2]
        return msgspec.json.decode(body, type=BlobAnswer)

    async def colleague(caller):
        grant = await caller.open()
        number = front.last_opened()
        answer = await query(caller, grant)
        assert answer.held == (DIGEST,)
        status, _, body = await caller.ask("POST", "/blobs/prove", grant, json={"proofs": {DIGEST: "0" * 64}})
        assert (status, refusal(body).kind) == (403, "blob")
        proof = blake3(BLOB, key=bytes.fromhex(answer.nonce)).hexdigest()
        before = len([line for line in front.received() if line.startswith("BLOB")])
        assert (await caller.ask("POST", "/blobs/prove", grant, json={"proofs": {DIGEST: proof}}))[0] == 204
        assert (await caller.ask("DELETE", "", grant))[0] == 204
        front.wait_received(f"CLOSE {number}")
        assert len([line for line in front.received() if line.startswith("BLOB")]) == before + 1
        other = await caller.open()  # the nonce is the session's own
        assert (await caller.ask("POST", "/blobs/prove", other, json={"proofs": {DIGEST: proof}}))[0] == 403

    async def stranger(caller):
        grant = await caller.open()
        answer = await query(caller, grant)
        assert answer.held == ()
        proof = blake3(BLOB, key=bytes.fromhex(answer.nonce)).hexdigest()
        assert (await caller.ask("POST", "/blobs/prove", grant, json={"proofs": {DIGEST: proof}}))[0] == 403

    with_caller(front, upload, "alpha")
    with_caller(front, colleague, "beta")
    with_caller(front, stranger, "gamma")


def test_a_bulk_value_is_read_whole_from_an_offset_and_by_its_session_only(front):
    async def scenario(caller):
        grant, other = await caller.open(), await caller.open()
        socket = await caller.connect(grant, epoch=1)
        await socket.send_bytes(step(1, Seed(1)))
        assert opened(await socket.receive_bytes())[2][0].values[0].bulk == "b1"
        status, _, body = await caller.ask("GET", "/bulk/b1", other)
        assert (status, refusal(body).kind) == (404, "blob")
        status, headers, body = await caller.ask("GET", "/bulk/b1", grant, headers={"Range": "bytes=1000-"})
        assert (status, body) == (206, BULK[1000:])
        assert headers["Content-Range"] == f"bytes 1000-{len(BULK) - 1}/{len(BULK)}"
        assert (await caller.ask("GET", "/bulk/b1", grant))[::2] == (200, BULK)
        assert list(front.folder.glob("worker-*/bulk-*"))
        assert (await caller.ask("GET", "/bulk/next", grant))[0] == 404  # who asks for another has the last
        assert not list(front.folder.glob("worker-*/bulk-*"))
        assert (await caller.ask("GET", "/bulk/b1", grant))[0] == 404
        await socket.close()

    with_caller(front, scenario)
    assert any(line.startswith("BULK_READ") for line in front.received())


# ---------------------------------------------------------------- life and death


def test_a_lease_ends_a_silent_session():
    async def scenario(caller):
        silent, heard = await caller.open(), await caller.open()
        socket = await caller.connect(heard, epoch=1)
        for _ in range(15):
            await socket.ping()
            await asyncio.sleep(0.1)
        status, *_ = await caller.ask("POST", "/blobs/query", silent, json={"digests": []})
        assert status == 404
        await socket.send_bytes(step(1, Barrier(1)))
        assert opened(await socket.receive_bytes())[2] == (Done(1),)
        await socket.close()

    with front_process("--lease", "0.8") as front:
        with_caller(front, scenario, token=None)
        front.wait_received("CLOSE 1")


def test_a_dead_worker_ends_sessions_and_not_the_front():
    async def scenario(caller):
        mine, other = await caller.open(), await caller.open()
        sockets = [await caller.connect(grant, epoch=1) for grant in (mine, other)]
        await sockets[0].send_bytes(step(1, Seed(2)))
        (lost,) = opened(await sockets[0].receive_bytes())[2]
        assert isinstance(lost, Lost)
        assert "row 3 of segment 7" in lost.reason
        (lost,) = opened(await sockets[1].receive_bytes())[2]
        assert lost == Lost("the worker died (signal SIGKILL) while it ran another session's work")
        status, _, body = await caller.ask("GET", "/steps?epoch=2&received=0", mine)
        assert (status, refusal(body).kind) == (404, "session")
        assert "worker died (signal SIGKILL)" in refusal(body).message
        async with asyncio.timeout(10):
            while True:
                status = msgspec.json.decode((await caller.ask("GET", "/v1/status"))[2], type=Status)
                if status.workers_started == 2:
                    break
                await asyncio.sleep(0.02)
        socket = await caller.connect(await caller.open(), epoch=1)
        await socket.send_bytes(step(1, Barrier(1)))
        assert opened(await socket.receive_bytes())[2] == (Done(1),)
        for s in (*sockets, socket):
            await s.close()

    with front_process() as front:
        with_caller(front, scenario, token=None)


def test_sigterm_tells_the_clients_and_leaves_nothing_behind():
    async def scenario(caller):
        socket = await caller.connect(await caller.open(), epoch=1)
        front.process.terminate()
        assert opened(await socket.receive_bytes())[2] == (Lost("executor is shutting down"),)
        await socket.close()

    with front_process() as front:
        folder = front.folder
        with_caller(front, scenario, token=None)
        assert front.stop()[0] == 0
        assert not folder.exists()


def test_the_end_of_stdin_ends_it():
    with front_process("--until-stdin-closes") as front:
        front.process.stdin.close()
        assert front.process.wait(10) == 0
        front.process.stdin = None  # communicate() would flush it


def failed_start(*options):
    done = subprocess.run([sys.executable, "-c", START, *options], capture_output=True, text=True, timeout=30)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_taken_port_is_named():
    with front_process() as front:
        port = front.url.rpartition(":")[2]
        code, text = failed_start("--port", port)
    assert code == 1
    assert f"port {port} on 127.0.0.1 is taken" in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--host", "0.0.0.0"], "--token-file is needed"),
        (["--memory", "3x"], "--memory '3x'"),
        (["--device", "tpu"], "--device 'tpu'"),
        (["--token-file", "/nonexistent"], "--token-file /nonexistent"),
        (["--tls-cert", "/nonexistent"], "go together"),
        (["--lease", "0"], "--lease"),
    ],
)
def test_wrong_options_are_explained(options, text):
    code, stderr = failed_start("--port", "0", *options)
    assert code == 2
    assert text in stderr


def test_a_worker_that_does_not_start_ends_the_front():
    code, text = failed_start("--port", "0", "--device", "cuda:99")
    assert code == 1
    assert "the worker failed at start 3 times" in text
    assert "exit code 7" in text
