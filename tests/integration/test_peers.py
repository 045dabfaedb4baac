"""Values from executor to executor: two real executors, raw clients, real sockets."""

from __future__ import annotations

import asyncio

import pytest
from executor_process import executor_process
from lane import FULL, lanes

from remora.wire.messages import Pushed


@pytest.fixture(scope="module")
def pair():
    with executor_process("--memory", "1GiB") as a, executor_process("--memory", "1GiB") as b:
        yield a, b


def with_lanes(scenario, *executors):
    async def run():
        async with lanes(*(executor.url for executor in executors)) as made:
            return await scenario(*made)

    return asyncio.run(run())


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


def test_a_large_value_arrives_whole(pair):
    async def scenario(a, b):
        await a.peer(0, b)
        name = await a.full(await a.define(FULL), 1, 1 << 20, 1.5)
        await b.wait(name)
        assert (await a.push(0, name)).nbytes >= 4 << 20
        assert set(await b.floats(name)) == {1.5}

    with_lanes(scenario, *pair)
