"""Values between executors of one host that do not go over HTTP: real processes, real sockets.

A GPU's memory is stood in for by lending_worker.py, whose memory another process opens and copies, too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import msgspec
import pytest
from executor_process import executor_process, status_until
from lane import ADD_IN_PLACE, FULL, MB, lanes, memory, settled, with_lanes

from remora.executor.front.carrier import proof_of
from remora.executor.front.local_frames import Declined, Give, Hello, Proven, ask
from remora.ir.graph import Template
from remora.ir.node import Hole, Node, Slot
from remora.wire.codec import encode
from remora.wire.messages import Free, Lost, Pushed, PushFailed, Run
from remora.wire.parcel import Parcel, Part

LENDING = Path(__file__).with_name("lending_worker.py")
ARANGE = Template((Node("aten.arange.default", (Hole("int"),)),))
SLICE = Template((Node("aten.slice.Tensor", (Slot(0), *(Hole("int"),) * 4)),))
LARGE = 17 << 10  # floats, in a push of its own too large for a packet


@contextmanager
def lending():
    """An executor whose worker lends its memory."""
    with executor_process("--memory", "1GiB", worker=LENDING) as executor:
        yield executor


def go_wrong(executor, fault: str) -> None:
    """From now on; see lending_worker.py."""
    (folder_of(executor) / "fault").write_text(fault)


def counted(executor, before: dict[str, float] | None = None) -> dict[str, float]:
    """Pushes since `before`: in all, by the host's memory, by the device's, and not by the shortest way."""
    found = executor.status().principals.get("local/user", {})
    names = {"pushes": "all", "host_pushes": "host", "device_pushes": "device", "missed_pushes": "missed"}
    now = {short: found.get(name, 0) - (before or {}).get(short, 0) for name, short in names.items()}
    return {short: n for short, n in now.items() if n}


def arrivals(executor) -> int:
    return executor.status().principals.get("local/user", {}).get("arrivals", 0)


def folder_of(executor) -> Path:
    (folder,) = Path("/dev/shm").glob(f"remora-front-{executor.process.pid}-*")
    return folder


def lent(executor) -> list[Path]:
    return list(folder_of(executor).rglob("lent-*"))


async def none_lent(executor, within_s: float = 6.0) -> None:
    until = time.monotonic() + within_s
    while lent(executor):
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


async def arange(lane, segment: int, n: int) -> tuple[int, int, int]:
    """0 to n - 1, as int64: no two of its elements are alike."""
    if "arange" not in lane.sites:
        lane.sites["arange"] = await lane.define(ARANGE)
    await lane.send(Run(segment, lane.sites["arange"], holes=(0, n), keep=(0, 0)))
    return segment, 0, 0


async def arrives(a, b, segment: int, n: int) -> object:
    """Pushes `n` numbers, looks whether they came bit for bit, and returns the answer."""
    name = await arange(a, segment, n)
    await b.wait(name)
    answer = await a.push(0, name)
    if isinstance(answer, Pushed):
        (payload,) = await b.fetch(name)
        assert await b.bytes_of(payload) == struct.pack(f"<{n}q", *range(n))
        await b.send(Free(name))
    await a.send(Free(name))
    return answer


# ---------------------------------------------------------------- by the host's memory


@pytest.fixture(scope="module")
def pair(executor, second):
    return executor, second


def test_every_size_comes_bit_for_bit_and_not_over_http(pair):
    async def scenario(a, b):
        await a.peer(0, b)
        for segment, n in enumerate((1, 1000, 8 << 10, LARGE, MB, 5 * MB + 3), 1):
            answer = await arrives(a, b, segment, n)
            assert isinstance(answer, Pushed)
            assert 0 < answer.nbytes - 8 * n < 200
            assert 0 < answer.seconds < 10

    before, arrived = counted(pair[0]), arrivals(pair[1])
    with_lanes(scenario, *pair)
    assert counted(pair[0], before) == {"all": 6, "host": 6}
    assert arrivals(pair[1]) - arrived == 6


@pytest.mark.parametrize("refuses", [0, 1])
def test_the_operator_of_either_end_can_refuse(pair, refuses):
    with executor_process("--memory", "256MiB", "--no-same-host") as refusing:
        a, b = (refusing, pair[1]) if refuses == 0 else (pair[0], refusing)

        async def scenario(one, two):
            await one.peer(0, two)
            assert isinstance(await arrives(one, two, 1, LARGE), Pushed)

        before = counted(a)
        with_lanes(scenario, a, b)
        assert counted(a, before) == {"all": 1}
        assert (folder_of(refusing) / "here").exists() is False


def test_the_rule_about_peers_holds_here_too(pair):
    with executor_process("--memory", "256MiB", "--peers", "none") as alone:

        async def scenario(a, b):
            await a.peer(0, b)
            answer = await arrives(a, b, 1, LARGE)
            assert (answer.kind, "--peers none" in answer.message) == ("refused", True)

        with_lanes(scenario, alone, pair[1])


def test_where_nobody_listens_http_does_it_and_that_is_counted_and_said_once(pair):
    a, before, heard = pair[0], counted(pair[0]), len(pair[0].said())
    with executor_process("--memory", "256MiB") as b:
        (folder_of(b) / "here").unlink()

        async def scenario(one, two):
            await one.peer(0, two)
            for segment in range(1, 4):
                assert isinstance(await arrives(one, two, segment, LARGE), Pushed)

        with_lanes(scenario, a, b)
        assert counted(a, before) == {"all": 3, "missed": 3}
        said = a.said()[heard:]
        assert said.count("on this host, go over http: the socket on this host: ") == 1, said


def test_what_gives_no_proof_is_told_no_secret(pair):
    a, before = pair[0], counted(pair[0])
    with executor_process("--memory", "256MiB") as b:
        path = folder_of(b) / "here"
        path.unlink()

        async def run():
            heard = bytearray()

            async def imposter(reader, writer):
                heard.extend(await reader.read(4096))
                answer = msgspec.msgpack.encode(Proven("0" * 64, "cuda"))
                writer.write(struct.pack("<I", len(answer)) + answer)
                heard.extend(await reader.read(4096))
                writer.close()

            server = await asyncio.start_unix_server(imposter, path)
            async with lanes(a.url, b.url) as (one, two):
                await one.peer(0, two)
                assert isinstance(await arrives(one, two, 1, LARGE), Pushed)
                assert two.grant.session.encode() in heard
                assert two.grant.push_secret.encode() not in heard
            server.close()

        asyncio.run(run())
        assert counted(a, before) == {"all": 1, "missed": 1}
        assert "gives no proof that it is the peer" in a.said()


def test_the_peer_dies_and_comes_back_as_another(pair):
    a, before = pair[0], counted(pair[0])
    with executor_process("--memory", "256MiB") as b:

        async def run():
            async with lanes(a.url, b.url) as (one, two):
                await one.peer(0, two)
                assert isinstance(await arrives(one, two, 1, LARGE), Pushed)
                os.kill(b.process.pid, signal.SIGKILL)
                b.process.wait()
                name, started = await arange(one, 2, LARGE), time.monotonic()
                answer = await one.push(0, name)
                assert (type(answer), answer.kind) == (PushFailed, "unreachable")
                assert time.monotonic() - started < 2
                with executor_process("--memory", "256MiB") as c:
                    async with lanes(c.url) as (three,):
                        await one.peer(0, three)
                        assert isinstance(await arrives(one, three, 3, LARGE), Pushed)
                two.caller, two.grant = one.caller, one.grant

        asyncio.run(run())
        assert counted(a, before) == {"all": 2, "host": 2}


# ---------------------------------------------------------------- a hostile process of this user


@pytest.fixture(scope="module")
def victim():
    with executor_process("--memory", "256MiB") as executor:
        yield executor


def head_of(nbytes: int, push: str = "00112233aabbccdd") -> bytes:
    return encode(Parcel(push, (nbytes,), (Part((1, 0, 0), 0, "uint8", (nbytes,), (1,), 0),)))


def descriptors(executor) -> int:
    return len(list(Path(f"/proc/{executor.process.pid}/fd").iterdir()))


def let_go(executor, before: int) -> None:
    """Waits until it has no more descriptors than before."""
    until = time.monotonic() + 5
    while (held := descriptors(executor)) > before:
        assert time.monotonic() < until, f"{held} descriptors, {before} before"
        time.sleep(0.02)


def test_what_makes_no_sense_is_declined_and_leaves_nothing(victim, tmp_path):
    nbytes = 1 << 20
    (tmp_path / "whole").write_bytes(bytes(nbytes))
    (tmp_path / "short").write_bytes(bytes(nbytes - 1))

    def told(lane, give: Give, file: int | None = None) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(folder_of(victim) / "here"))
            nonce = "0123456789abcdef"
            proven = ask(connection, Hello(1, lane.grant.session, nonce))
            assert proven == Proven(proof_of(lane.grant.push_secret, nonce), "")
            answer = ask(connection, give, file)
            assert isinstance(answer, Declined), answer
            return answer.message

    def attack(lane):
        secret = lane.grant.push_secret
        give = Give(secret, head_of(nbytes), nbytes)
        with open(tmp_path / "short", "rb") as short, open(tmp_path / "whole", "rb") as whole:
            reading, writing = os.pipe()
            file = whole.fileno()
            assert "another push secret" in told(lane, Give("x", give.head, nbytes), file)
            assert "without its body" in told(lane, give)
            assert "in a file of 1048575" in told(lane, give, short.fileno())
            assert "in a file of 0" in told(lane, give, reading)
            assert "1048560 bytes for storages of" in told(lane, Give(secret, give.head, nbytes - 16), file)
            assert "malformed parcel" in told(lane, Give(secret, b"xx", nbytes), file)
            assert "3 bytes of 1048576" in told(lane, Give(secret, give.head, nbytes, b"abc"))
            assert "asked for" in told(lane, Give(secret, head_of(1 << 38), 1 << 38, handle=b"h" * 64))
            assert "opens no memory" in told(lane, Give(secret, give.head, nbytes, handle=b"h" * 64))
            os.close(reading)
            os.close(writing)

    async def scenario(lane):
        await settled(lane)
        before = descriptors(victim)
        await asyncio.to_thread(attack, lane)
        await asyncio.to_thread(let_go, victim, before)
        assert (await memory(lane)).allocated_nbytes == 0
        name = await lane.put(9, 1.0)
        assert await lane.floats(name) == (1.0,)

    with_lanes(scenario, victim)
    assert victim.status().workers_started == 1
    status_until(victim, lambda status: status.used_nbytes == 0)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", 1 << 31),
        struct.pack("<I", 3) + b"\xc1\xc1\xc1",
        struct.pack("<I", 100),
    ],
    ids=["nothing", "http", "endless", "no message", "half"],
)
def test_who_does_not_say_hello_is_not_listened_to(victim, said):
    before = descriptors(victim)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder_of(victim) / "here"))
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(5)
        assert connection.recv(4096) == b""
    let_go(victim, before)


def test_only_this_user_reaches_the_socket(victim):
    assert folder_of(victim).stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------- by the device's memory


@pytest.fixture(scope="module")
def lenders():
    with lending() as a, lending() as b:
        yield a, b


@pytest.fixture
def near(lenders):
    """Two that lend each other their memory; nothing is lent, and nothing goes wrong yet."""
    for executor in lenders:
        go_wrong(executor, "")
        asyncio.run(none_lent(executor))
    return lenders


def test_once_the_peer_is_known_to_be_near_its_device_copies(near):
    a, b = near

    async def scenario(one, two):
        await one.peer(0, two)
        for segment, n in enumerate((LARGE, LARGE, MB, 3 * MB + 5, 10), 1):
            assert isinstance(await arrives(one, two, segment, n), Pushed)

    before, arrived = counted(a), arrivals(b)
    with_lanes(scenario, a, b)
    assert counted(a, before) == {
        "all": 5,
        "host": 2,
        "device": 3,
    }  # the first tells; the last is in a packet
    assert arrivals(b) - arrived == 5
    status_until(b, lambda status: status.used_nbytes == 0)
    asyncio.run(none_lent(a))  # what is spare is given back


def test_views_keep_their_strides_and_what_is_written_later_is_not_sent(near):
    a, b = near
    go_wrong(b, "slow")

    async def scenario(one, two):
        await one.peer(0, two)
        name = await arange(one, 1, LARGE)
        await one.push(0, name)
        await two.wait(name)
        site, pointwise = await one.define(SLICE), await one.define(ADD_IN_PLACE)
        matrix = await one.full(await one.define(FULL), 2, LARGE, 1.0)
        await one.send(Run(3, site, slots=(0, 0, *matrix), holes=(0, 0, 1, 0, 2, LARGE, 3, 2), keep=(0, 0)))
        ticket = await one.start_push(0, matrix, (3, 0, 0))
        await one.add(pointwise, 4, matrix)
        await two.wait(matrix, (3, 0, 0))
        (view,) = await two.fetch((3, 0, 0))
        assert (view.shape, view.stride) == ((LARGE // 2,), (2,))
        assert set(await two.floats((3, 0, 0))) == {1.0}
        assert set(await one.floats(matrix)) == {2.0}
        assert isinstance(await one.answer(ticket), Pushed)
        assert (await memory(two)).storages == 2  # the two share one

    before = counted(a)
    with_lanes(scenario, a, b)
    assert counted(a, before)["device"] == 1


@pytest.mark.parametrize(
    ("fault", "at_source", "text"),
    [
        ("export", True, "go over host: a fault of the test: export"),
        ("full", True, "go over host: a fault of the test: full"),
        ("open", False, "go over host: a fault of the test: open"),
    ],
)
def test_what_cannot_be_lent_or_opened_goes_through_the_host_and_is_counted(near, fault, at_source, text):
    async def scenario(one, two):
        await one.peer(0, two)
        for segment in range(1, 5):
            assert isinstance(await arrives(one, two, segment, LARGE), Pushed)
        await settled(two)
        assert (await memory(two)).allocated_nbytes == 0

    with lending() if fault == "export" else nullcontext(near[0]) as a:  # a lasting fault of its own
        b = near[1]
        go_wrong(a if at_source else b, fault)
        before, heard = counted(a), len(a.said())
        with_lanes(scenario, a, b)
        found = counted(a, before)
        assert found == {"all": 4, "host": 4, "missed": 3}  # the first tells that the two are near
        said = a.said()[heard:]
        assert said.count(text) == 1, said
        status_until(b, lambda status: status.used_nbytes == 0)


def test_the_destinations_worker_dies_while_it_opens(near):
    a = near[0]
    with lending() as b:
        go_wrong(b, "die")

        async def run():
            async with lanes(a.url, b.url) as (one, two):
                await one.peer(0, two)
                assert isinstance(await arrives(one, two, 1, LARGE), Pushed)
                name, started = await arange(one, 2, LARGE), time.monotonic()
                answer = await one.push(0, name)
                assert (type(answer), answer.kind) == (PushFailed, "refused")
                assert "is over" in answer.message
                assert time.monotonic() - started < 3
                assert isinstance(await two.failed(), Lost)
                await none_lent(a)
                two.caller, two.grant = one.caller, one.grant

        asyncio.run(run())


def test_the_destination_dies_while_it_opens(near):
    a = near[0]
    with lending() as b:
        go_wrong(b, "slow")

        async def run():
            async with lanes(a.url, b.url) as (one, two):
                await one.peer(0, two)
                assert isinstance(await arrives(one, two, 1, LARGE), Pushed)
                ticket = await one.start_push(0, await arange(one, 2, LARGE))
                await asyncio.sleep(0.5)
                os.kill(b.process.pid, signal.SIGKILL)
                b.process.wait()
                answer = await one.answer(ticket)
                assert (type(answer), answer.kind) == (PushFailed, "unreachable")
                assert await one.floats(await one.put(3, 1.0)) == (1.0,)
                await none_lent(a)
                two.caller, two.grant = one.caller, one.grant

        asyncio.run(run())


@pytest.mark.parametrize("ends", [0, 1])
def test_a_session_ends_while_its_memory_is_lent(near, ends):
    """The source's: what it handed over is still brought. The destination's: it is not, and nothing is kept."""
    a, b = near
    go_wrong(b, "slow")

    async def run():
        async with lanes(a.url, b.url, a.url, b.url) as (one, two, other, third):
            both = one, two
            await one.peer(0, two)
            assert isinstance(await arrives(one, two, 1, LARGE), Pushed)
            name = await arange(one, 2, LARGE)
            ticket = await one.start_push(0, name)
            await two.wait(name)
            await asyncio.sleep(0.5)
            assert len(lent(a)) == 1
            gone = both[ends]
            await gone.caller.ask("DELETE", "", gone.grant)
            if ends == 0:
                (payload,) = await two.fetch(name)
                assert await two.bytes_of(payload) == struct.pack(f"<{LARGE}q", *range(LARGE))
            else:
                answer = await one.answer(ticket)
                assert (answer.kind, "is over" in answer.message) == ("refused", True)
                await settled(one)
                await none_lent(a)
            (other if ends == 0 else third).got.clear()

    asyncio.run(run())
    for executor in (a, b):
        status_until(executor, lambda status: status.used_nbytes == 0)
        assert executor.status().workers_started == 1


def test_two_sessions_of_one_worker(near):
    """A process does not open its own memory; it reads it."""
    a = near[0]
    go_wrong(a, "open")

    async def scenario(one, two):
        await one.peer(0, two)
        for segment in range(1, 4):
            assert isinstance(await arrives(one, two, segment, LARGE), Pushed)

    before = counted(a)
    with_lanes(scenario, a, a)
    assert counted(a, before) == {"all": 3, "host": 1, "device": 2}
