"""Values from executor to executor: real executors, raw clients, real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import time
from pathlib import Path

import pytest
from executor_process import Proxy, executor_process, status_until
from lane import ADD, ADD_IN_PLACE, FULL, MB, lanes, memory, settled, with_lanes

from remora.ir.graph import Template
from remora.ir.node import Hole, Node, Slot
from remora.wire.messages import (
    Barrier,
    Failed,
    Free,
    Lost,
    Pushed,
    PushFailed,
    Put,
    Recover,
    Run,
)

ROW = Template((Node("aten.select.int", (Slot(0), Hole("int"), Hole("int"))),))
TRANSPOSED = Template((Node("aten.t.default", (Slot(0),)),))


@pytest.fixture(scope="module", params=["--same-host", "--no-same-host"])
def pair(request):
    """By each of the two ways."""
    options = ("--memory", "1GiB", request.param)
    with executor_process(*options) as a, executor_process(*options) as b:
        yield a, b


# ---------------------------------------------------------------- what arrives


def test_a_small_value_arrives_under_its_name(pair):
    async def scenario(a, b):
        await a.peer(1, b)
        name = await a.put(1, 1.0, 2.0)
        answer = await a.push(1, name)
        assert isinstance(answer, Pushed)
        assert 8 < answer.nbytes < 200
        await b.wait(name)
        assert await b.floats(name) == (1.0, 2.0)

    with_lanes(scenario, *pair)


def test_a_large_value_arrives_whole_and_is_a_value_like_any_other(pair):
    async def scenario(a, b):
        await a.peer(0, b)
        name = await a.full(await a.define(FULL), 1, MB, 1.5)
        await b.wait(name)
        assert (await a.push(0, name)).nbytes >= 1 << 20
        assert set(await b.floats(name)) == {1.5}
        assert (await memory(b)).allocated_nbytes == 1 << 20
        await b.add(await b.define(ADD_IN_PLACE), 2, name)
        assert set(await b.floats(name)) == {2.5}
        assert set(await a.floats(name)) == {1.5}
        await b.send(Free((*name, 2, 0, 0)))
        assert (await memory(b)).allocated_nbytes == 0

    with_lanes(scenario, *pair)


@pytest.mark.parametrize("n", [4, MB])
def test_what_is_written_after_the_push_is_not_sent(pair, n):
    async def scenario(a, b):
        await a.peer(0, b)
        name = await a.full(await a.define(FULL), 1, n, 1.0)
        site = await a.define(ADD_IN_PLACE)
        ticket = await a.start_push(0, name)
        for segment in range(2, 10):
            await a.add(site, segment, name)
        await b.wait(name)
        assert set(await b.floats(name)) == {1.0}
        assert set(await a.floats(name)) == {9.0}
        assert isinstance(await a.answer(ticket), Pushed)

    with_lanes(scenario, *pair)


@pytest.mark.parametrize("n", [8, MB])
def test_values_of_one_storage_share_it_on_arrival(pair, n):
    async def scenario(a, b):
        await a.peer(0, b)
        site, row = await a.define(FULL), await a.define(ROW)
        await a.send(Put(1, "float32", (2, 2), struct.pack("<4f", 1, 2, 3, 4)))
        if n > 8:
            await a.full(site, 2, n, 0.0)
        base = (1, 0, 0)
        await a.send(Run(3, row, slots=(0, 0, *base), holes=(0, 0, 1, 1), keep=(0, 0)))
        view = (3, 0, 0)
        await b.wait(base, view)
        await a.push(0, base, view)
        await b.add(await b.define(ADD_IN_PLACE), 4, view)
        assert await b.floats(base) == (1, 2, 4, 5)
        assert (await memory(b)).storages == 1

    with_lanes(scenario, *pair)


def test_a_lone_view_is_sent_without_its_base_unless_all_of_it_is_wanted(pair):
    async def scenario(a, b):
        await a.peer(0, b)
        transposed = await a.define(TRANSPOSED)
        await a.send(Put(1, "float32", (100, 2), struct.pack("<200f", *range(200))))
        await a.send(Run(2, transposed, slots=(0, 0, 1, 0, 0), keep=(0, 0)))
        row = await a.define(ROW)
        await a.send(Run(3, row, slots=(0, 0, 2, 0, 0), holes=(0, 0, 1, 1), keep=(0, 0)))
        view = (3, 0, 0)  # every second number
        await b.wait(view)
        small = await a.push(0, view)
        (payload,) = await b.fetch(view)
        assert payload.stride == (1,)
        assert struct.unpack("<100f", payload.data) == tuple(range(1, 200, 2))
        await b.send(Free(view))
        large = await a.push(0, view, whole=True)
        await b.wait(view)
        (payload,) = await b.fetch(view)
        assert payload.stride == (2,)
        assert struct.unpack("<100f", payload.data) == tuple(range(1, 200, 2))
        assert large.nbytes - small.nbytes >= 400

    with_lanes(scenario, *pair)


# ---------------------------------------------------------------- waiting


def test_a_stream_waits_and_other_sessions_of_the_worker_do_not(pair):
    a, b = pair

    async def run():
        async with lanes(a.url, b.url, b.url) as (source, held, free):
            await source.peer(0, held)
            site = await held.define(ADD)
            name = (1, 0, 0)
            await held.wait(name)
            await held.add(site, 2, name)
            fetch = asyncio.create_task(held.floats((2, 0, 0)))
            for segment in range(1, 50):
                value = await free.put(segment, float(segment))
                assert await free.floats(value) == (segment,)
            assert not fetch.done()
            await source.put(1, 4.0)
            await source.push(0, name)
            assert await fetch == (5.0,)
            await held.wait(name)  # it is there already
            await held.wait()
            assert await held.floats(name) == (4.0,)

    asyncio.run(run())


def test_a_value_that_does_not_come_fails_what_reads_it_and_nothing_else(pair):
    async def scenario(a, b):
        site = await b.define(ADD)
        lost, kept = (7, 0, 0), await b.put(1, 1.0)
        await b.wait(lost, source="gpu-3")
        await b.add(site, 8, kept)
        await b.add(site, 9, lost)
        ticket = b.ticket()
        await b.send(Barrier(ticket))
        await asyncio.sleep(0.1)
        assert not b.got
        assert await b.abandon(lost, reason="its worker died") == 204
        failed = await b.failed()
        assert isinstance(failed, Failed)
        assert (failed.segment, failed.row) == (9, 0)
        assert failed.message == "this tensor was to come from executor gpu-3, and did not: its worker died"
        await b.send(Recover(failed.failure))
        assert await b.floats((8, 0, 0)) == (2.0,)

        await a.peer(0, b)  # too late: it has failed already
        await a.put(7, 1.0)
        assert isinstance(await a.push(0, lost), Pushed)
        await b.wait(lost)
        ticket = b.ticket()
        await b.send(Barrier(ticket))
        await b.answer(ticket)
        assert (await memory(b)).allocated_nbytes == 8

    with_lanes(scenario, *pair)


def test_two_sessions_push_to_each_other_at_once(pair):
    async def scenario(a, b):
        await a.peer(0, b)
        await b.peer(0, a)
        sites = {lane: (await lane.define(FULL), await lane.define(ADD)) for lane in (a, b)}
        rounds = 6

        async def one(lane, mine, theirs):
            """Every value goes there and back, plus one each time."""
            for turn in range(rounds):
                segment = 100 * turn + mine
                name = await lane.full(sites[lane][0], segment, MB * 4, float(turn))
                await lane.start_push(0, name)
                came = (100 * turn + theirs, 0, 0)
                await lane.wait(came)
                await lane.add(sites[lane][1], segment + 50, came)
                await lane.send(Free((*name, *came)))
            return set(await lane.floats((100 * (rounds - 1) + mine + 50, 0, 0)))

        assert await asyncio.gather(one(a, 1, 2), one(b, 2, 1)) == [{float(rounds)}] * 2

    with_lanes(scenario, *pair)


def test_steps_that_wait_are_bounded_here_and_run_in_order(pair):
    async def scenario(a, b):
        await a.peer(0, b)
        name = (1, 0, 0)
        await b.wait(name)
        numbers = struct.pack("<16384f", *range(16384))

        async def many():
            for segment in range(2, 2002):  # 131 MB, more than sockets hold
                await b.send(Put(segment, "float32", (16384,), numbers), Free((segment - 1, 0, 0)))

        sending = asyncio.create_task(many())
        await asyncio.sleep(1.0)
        assert not sending.done()
        await a.put(1, 1.0)
        await a.push(0, name)
        await asyncio.wait_for(sending, 20)
        assert (await b.floats((2001, 0, 0)))[-1] == 16383
        assert (await memory(b)).storages == 1

    with_lanes(scenario, *pair)


# ---------------------------------------------------------------- failures


def test_a_push_of_what_is_not_there_fails_at_both_ends(pair):
    async def scenario(a, b):
        await a.peer(3, b)
        site = await b.define(ADD)
        await b.wait((5, 0, 0), source="a")
        await b.add(site, 6, (5, 0, 0))
        answer = await a.push(3, (5, 0, 0))
        assert (type(answer), answer.kind) == (PushFailed, "value")
        assert answer.message.startswith(
            f"values (5, 0, 0) were not sent to peer 3 at {b.url}: value (5, 0, 0)"
        )
        assert "from executor a, and did not: value (5, 0, 0) does not exist" in (await b.failed()).message
        assert (await a.push(4, (5, 0, 0))).kind == "refused"

    with_lanes(scenario, *pair)


def test_after_a_failure_nothing_is_sent_until_the_client_recovers(pair):
    async def scenario(a, b):
        await a.peer(0, b)
        name = await a.put(1, 1.0)
        await a.add(await a.define(ADD), 2, (9, 9, 9))
        failed = await a.failed()
        answer = await a.push(0, name)
        assert "not sent, because of an earlier failure" in answer.message
        await a.send(Recover(failed.failure))
        again = await a.put(3, 1.0)
        assert isinstance(await a.push(0, again), Pushed)

    with_lanes(scenario, *pair)


def test_a_name_that_exists_is_not_overwritten(pair):
    async def scenario(a, b):
        await a.peer(0, b)
        name = await a.put(1, 1.0)
        await b.put(1, 2.0)
        await a.push(0, name)
        await b.wait(name)
        failed = await b.failed()
        assert (failed.kind, "exists already" in failed.message) == ("protocol", True)
        await b.send(Recover(failed.failure))
        assert await b.floats(name) == (2.0,)

    with_lanes(scenario, *pair)


def test_a_value_that_does_not_fit_is_refused_with_the_arithmetic(pair):
    with executor_process("--memory", "64MiB") as small:

        async def scenario(a, b):
            await a.peer(0, b)
            name = await a.full(await a.define(FULL), 1, 80 * MB, 1.0)
            await b.wait(name)
            await b.add(await b.define(ADD), 2, name)
            answer = await a.push(0, name)
            assert answer.kind == "refused"
            assert "asked for 83886080 bytes; free 67108864 of 67108864" in answer.message
            assert "asked for 83886080 bytes" in (await b.failed()).message
            assert small.status().used_nbytes == 0

        with_lanes(scenario, pair[0], small)


def test_the_destination_dies(pair):
    with executor_process("--memory", "1GiB") as mortal:

        async def run():
            async with lanes(pair[0].url, mortal.url) as (a, b):
                await a.peer(2, b)
                name = await a.put(1, 1.0)
                await a.push(2, name)
                os.kill(mortal.process.pid, signal.SIGKILL)
                mortal.process.wait()
                started = time.monotonic()
                answer = await a.push(2, name)
                assert (type(answer), answer.kind) == (PushFailed, "unreachable")
                assert f"values (1, 0, 0) were not sent to peer 2 at {mortal.url}" in answer.message
                assert time.monotonic() - started < 2
                assert await a.floats(name) == (1.0,)
                b.caller, b.grant = a.caller, a.grant  # there is nobody to say goodbye to

        asyncio.run(run())


def test_the_destinations_worker_dies(pair):
    with executor_process("--memory", "1GiB") as mortal:

        async def run():
            async with lanes(pair[0].url, mortal.url) as (a, b):
                await a.peer(2, b)
                name = await a.put(1, 1.0)
                await a.push(2, name)
                mortal.kill_worker()
                assert isinstance(await b.failed(), Lost)
                answer = await a.push(2, name)
                assert (answer.kind, "there is no session" in answer.message) == ("refused", True)
                await a.peer(3, b)
                answer = await a.push(3, name)
                assert (answer.kind, "has no such session" in answer.message) == ("refused", True)
                b.caller, b.grant = a.caller, a.grant

        asyncio.run(run())


def test_the_source_dies_before_it_pushed(pair):
    """Its client hears so, and tells the destination, where the row that needed the value says why."""
    with executor_process("--memory", "1GiB") as mortal:

        async def run():
            async with lanes(mortal.url, pair[1].url) as (a, b):
                await a.peer(0, b)
                name = await a.full(await a.define(FULL), 1, 40 * MB, 1.0)
                await b.wait(name, source=mortal.url)
                await b.add(await b.define(ADD), 2, name)
                await settled(a)
                mortal.kill_worker()
                await a.start_push(0, name)
                lost = await a.failed()
                assert isinstance(lost, Lost)
                await b.abandon(name, reason=lost.reason)
                failed = await b.failed()
                assert f"from executor {mortal.url}, and did not: the worker died" in failed.message

        asyncio.run(run())


def test_the_source_dies_in_the_middle(pair):
    """Half a body is no value: the destination still waits, and lives."""
    with executor_process("--memory", "1GiB") as mortal:
        proxy = Proxy(pair[1].port)
        try:

            async def run():
                async with lanes(mortal.url, pair[1].url) as (a, b):
                    await a.peer(0, b, url=proxy.url)
                    name = await a.full(await a.define(FULL), 1, 100 * MB, 1.0)
                    await settled(a)
                    await a.start_push(0, name)
                    await b.wait(name)
                    await asyncio.sleep(0.15)
                    os.killpg(mortal.process.pid, signal.SIGKILL)
                    for pid in mortal.worker_pids():
                        os.kill(pid, signal.SIGKILL)
                    mortal.process.wait()
                    await asyncio.sleep(0.3)
                    await b.abandon(name)
                    await settled(b)
                    held = (await memory(b)).allocated_nbytes
                    assert held in (0, 100 << 20)  # all or nothing
                    a.caller, a.grant = b.caller, b.grant

            asyncio.run(run())
            status_until(pair[1], lambda status: status.used_nbytes == 0)
        finally:
            proxy.close()


# ---------------------------------------------------------------- beside other work


def test_a_large_push_does_not_hold_small_steps_up(pair):
    a, b = pair

    async def run():
        async with lanes(a.url, b.url, b.url) as (source, target, other):
            await source.peer(0, target)
            name = await source.full(await source.define(FULL), 1, 200 * MB, 1.0)
            await settled(source)
            await target.wait(name)
            push, begun = asyncio.create_task(source.push(0, name)), time.monotonic()
            slowest, steps, segment = 0.0, 0, 0
            while not push.done():
                segment += 1
                started = time.monotonic()
                value = await other.put(segment, 1.0)
                assert await other.floats(value) == (1.0,)
                slowest = max(slowest, time.monotonic() - started)
                steps += 1
            assert isinstance(await push, Pushed)
            assert steps >= 10
            assert slowest < max(
                0.25, (time.monotonic() - begun) / 3
            )  # held up, one step would take all of it
            await settled(target)
            assert (await memory(target)).allocated_nbytes == 200 << 20

    asyncio.run(run())


def test_what_was_sent_is_counted_and_its_memory_comes_back(pair):
    a, b = pair

    def counts():
        return [executor.status().principals.get("local/user", {}) for executor in pair]

    async def scenario(one, two):
        await one.peer(0, two)
        site = await one.define(FULL)
        total = 0
        for segment in range(1, 31):
            name = await one.full(site, segment, 16 * MB, 1.0)
            total += (await one.push(0, name)).nbytes
            await two.wait(name)
            await settled(two)
            for lane in (one, two):
                await lane.send(Free(name))
        return total

    before = counts()
    total = with_lanes(scenario, a, b)
    sent, came = (
        {name: n - was.get(name, 0) for name, n in now.items()}
        for now, was in zip(counts(), before, strict=True)
    )
    assert (sent["pushes"], sent["peer_bytes_out"]) == (30, total)
    assert 0 < sent["push_s"] < 30
    assert (came["arrivals"], came["peer_bytes_in"]) == (30, total)
    for executor in pair:
        status_until(executor, lambda status: status.used_nbytes == 0)
        until = time.monotonic() + 12
        while shared_nbytes(executor) > 1 << 20:
            assert time.monotonic() < until, shared_nbytes(executor)
            time.sleep(0.2)


def shared_nbytes(executor) -> int:
    """What lies in the executor's folder."""
    (folder,) = Path("/dev/shm").glob(f"remora-front-{executor.process.pid}-*")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
