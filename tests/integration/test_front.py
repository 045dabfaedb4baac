"""The front as a process, with a worker that only speaks the hop: control, steps, life and death."""

import asyncio
import struct
import subprocess
import sys

import aiohttp
import msgspec
import pytest
from front_process import START, front_process, opened, refusal, step, with_caller

from remora.wire.messages import Barrier, Done, Fetch, Lost, Seed, Status, Values

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
        assert "2 to 4" in refusal(body).message
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


# ---------------------------------------------------------------- life and death


def test_a_lease_ends_a_silent_session():
    async def scenario(caller):
        silent, heard = await caller.open(), await caller.open()
        socket = await caller.connect(heard, epoch=1)
        async with asyncio.timeout(10):
            while "CLOSE 1" not in front.received():
                await socket.ping()
                await asyncio.sleep(0.1)
        status, *_ = await caller.ask("POST", "/blobs/query", silent, json={"digests": []})
        assert status == 404
        await socket.send_bytes(step(1, Barrier(1)))
        assert opened(await socket.receive_bytes())[2] == (Done(1),)
        await socket.close()

    with front_process("--lease", "1.5") as front:
        with_caller(front, scenario, token=None)


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
