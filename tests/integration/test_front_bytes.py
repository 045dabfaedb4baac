"""Stored bytes and bulk values at the front as a process: proofs, cuts, stalls, what is not the blob."""

import asyncio
import os
import time
from contextlib import suppress

import msgspec
from blake3 import blake3
from fake_worker import BULK
from front_process import front_process, opened, refusal, step, with_caller

from remora.wire.messages import BlobAnswer, Fetch, Seed, Status

BLOB = bytes(range(256)) * 20_000
DIGEST = blake3(BLOB).hexdigest()


def files_of(front):
    """Sizes of what is stored or on its way."""
    return [path.stat().st_size for path in (front.folder / "blobs").iterdir()]


async def until(holds):
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


async def number_of(caller, grant):
    """The session's number on the hop."""
    socket = await caller.connect(grant, epoch=1)
    await socket.send_bytes(step(1, Fetch(1, ())))
    ((values,),) = (opened(await socket.receive_bytes())[2],)
    await socket.close()
    return int(values.values[0].data)


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


def test_a_blob_is_stored_and_the_worker_knows_first(front):
    async def scenario(caller):
        grant = await caller.open()
        number = await number_of(caller, grant)
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
        before = sum(files_of(front))
        _, writer = await connected(front)
        writer.write(put_head(front, grant, data) + data[: 4 << 20])
        await writer.drain()
        await until(lambda: sum(files_of(front)) > before)
        # HEAD stops the first connection, which is still open, wherever it is
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
        files = len(files_of(front))
        reader, writer = await connected(front)
        data = os.urandom(8 << 20)
        writer.write(put_head(front, grant, data) + data[: 5 << 20])
        await writer.drain()
        await until(lambda: len(files_of(front)) == files + 1)
        assert (await caller.ask("DELETE", "", grant))[0] == 204
        async with asyncio.timeout(3):
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            await until(lambda: len(files_of(front)) == files)
        writer.transport.abort()

    with_caller(front, scenario)


def test_a_stalled_upload_does_not_hold_up_the_end():
    async def scenario(caller):
        grant = await caller.open()
        _, writer = await connected(front)
        writer.write(put_head(front, grant, bytes(8 << 20)) + bytes(3 << 20))
        await writer.drain()
        await until(lambda: sum(files_of(front)) > 0)
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
        files = len(files_of(front))
        status, _, body = await caller.ask("PUT", f"/blobs/{digest}", grant, data=b"wrong")
        assert (status, refusal(body).kind) == (400, "blob")
        assert len(files_of(front)) == files
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
        number = await number_of(caller, grant)
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
        await until(lambda: any(line.startswith("BULK_READ") for line in front.received()))

    with_caller(front, scenario)
