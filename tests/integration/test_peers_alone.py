"""Values between executors whose network, lease, tokens or certificates are a test's own."""

from __future__ import annotations

import asyncio

import pytest
from executor_process import Proxy, executor_process
from lane import FULL, MB, lanes, memory, with_lanes
from test_transport_http import _certify

from remora.wire.messages import (
    Lost,
    Pushed,
)


@pytest.fixture(scope="module")
def http_pair():
    options = ("--memory", "1GiB", "--no-same-host")
    with executor_process(*options) as a, executor_process(*options) as b:
        yield a, b


def test_a_session_that_waits_can_be_closed_and_its_lease_ends():
    with executor_process("--memory", "1GiB", "--lease", "2") as executor:

        async def run():
            async with lanes(executor.url, executor.url) as (one, two):
                for lane in (one, two):
                    await lane.wait((1, 0, 0))
                    await lane.put(2, 1.0)
                for _ in range(6):
                    await asyncio.sleep(0.5)
                    await two.socket.ping()
                lost = await one.failed()
                assert isinstance(lost, Lost)
                assert "lease" in lost.reason
                assert executor.status().sessions == 1
                assert (await two.caller.ask("DELETE", "", two.grant))[0] == 204
                assert executor.status().workers_started == 1

        asyncio.run(run())


@pytest.mark.parametrize("n", [8 * MB, MB // 8])
def test_a_cut_is_mended_once(http_pair, n):
    proxy = Proxy(http_pair[1].port)
    try:

        async def scenario(a, b):
            await a.peer(0, b, url=proxy.url)
            site = await a.define(FULL)
            await a.push(0, await a.put(1, 1.0))
            cuts = proxy.cuts
            proxy.budget = 2 * n
            name = await a.full(site, 2, n, 3.0)
            assert isinstance(await a.push(0, name), Pushed)
            assert proxy.cuts == cuts + 1
            await b.wait(name)
            assert set(await b.floats(name)) == {3.0}
            assert (await memory(b)).storages == 2

        with_lanes(scenario, *http_pair)
    finally:
        proxy.close()


def test_a_network_that_cuts_each_time_is_told(http_pair):
    proxy = Proxy(http_pair[1].port)
    try:

        async def scenario(a, b):
            await a.peer(0, b, url=proxy.url)
            name = await a.full(await a.define(FULL), 1, 8 * MB, 3.0)
            await a.push(0, await a.put(2, 1.0))
            proxy.close()
            answer = await a.push(0, name)
            assert answer.kind == "unreachable"
            assert (await memory(b)).storages == 1

        with_lanes(scenario, *http_pair)
    finally:
        if not proxy.closed:
            proxy.close()


def test_executors_with_tokens_of_their_own(tmp_path):
    """The client's token never leaves the executor it is for."""
    for name in "ab":
        (tmp_path / name).write_text(f"token-{name} acme/{name}\n")
    options = [("--memory", "1GiB", "--token-file", str(tmp_path / name)) for name in "ab"]
    with executor_process(*options[0]) as a, executor_process(*options[1]) as b:

        async def run():
            async with lanes(a.url, b.url, tokens=("token-a", "token-b")) as (one, two):
                await one.peer(0, two)
                name = await one.put(1, 5.0)
                assert isinstance(await one.push(0, name), Pushed)
                await two.wait(name)
                assert await two.floats(name) == (5.0,)

        asyncio.run(run())


def test_executors_with_certificates(tmp_path):
    """The authority comes from the client, and nobody else's will do."""
    authority, _ = _certify(tmp_path)
    pem = str(tmp_path / "server.pem")
    options = ("--memory", "1GiB", "--tls-cert", pem, "--tls-key", pem)
    with executor_process(*options) as a, executor_process(*options) as b:

        async def run():
            async with lanes(a.url, b.url, authority=authority) as (one, two):
                site = await one.define(FULL)
                await one.peer(0, two, ca=authority.read_text())
                name = await one.full(site, 1, 4 * MB, 2.0)
                assert isinstance(await one.push(0, name), Pushed)
                await two.wait(name)
                assert set(await two.floats(name)) == {2.0}
                await one.peer(1, two)
                answer = await one.push(1, await one.put(2, 1.0))
                assert (answer.kind, "certificate is not trusted" in answer.message) == ("unreachable", True)

        asyncio.run(run())
