"""Executors on shaped links: the rate is real, the kernel's count is right, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from lane import FULL, lanes

import remora
from remora.bench import links, netns, raw_rate
from remora.bench.harness import Impossible
from remora.bench.netns import CLIENT, NoNamespaces, Traffic

RATE = 25e6  # bytes/s: far below what the machine can do, so the shaper is what limits


def _why_not() -> str:
    try:
        with netns.network(1, RATE):
            return ""
    except NoNamespaces as error:
        return str(error)


WHY_NOT = _why_not()
with_namespaces = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces here: {WHY_NOT}")


@pytest.fixture(scope="module")
def net() -> Iterator[netns.Network]:
    with netns.network(2, RATE) as made:
        yield made


@with_namespaces
@pytest.mark.parametrize(("source", "target"), [(CLIENT, 0), (0, CLIENT), (0, 1), (1, 0)])
def test_every_way_has_the_rate_and_is_counted(net: netns.Network, source: int, target: int) -> None:
    nbytes = 5_000_000
    host = net.address(target)
    with raw_rate.receiver(host, net.inside(target)) as port:
        before = net.traffic()
        seconds = raw_rate.sent_from(net.inside(source), host, port, nbytes)
        passed = net.traffic() - before
    assert 0.7 * RATE <= nbytes / seconds <= 1.05 * RATE
    assert nbytes <= passed.sent[source] <= 1.1 * nbytes  # CLIENT is last, so -1 is its place
    assert nbytes <= passed.received[target] <= 1.1 * nbytes
    between = passed.between_executors
    assert nbytes <= between <= 1.1 * nbytes if CLIENT not in (source, target) else between < nbytes / 100


@with_namespaces
def test_executors_work_behind_their_links_and_end_with_them() -> None:
    with links.executors(2, links.Link(RATE)) as pool:
        assert pool.kind == "netns"
        assert pool.traffic is not None
        assert 0.7 * RATE <= pool.rates.fastest <= 1.05 * RATE
        processes = [one._process for one in pool.processes]
        remora.connect(pool.urls[1], pool.token)
        try:
            before, started = pool.traffic(), time.perf_counter()
            x = torch.arange(1_000_000, dtype=torch.float32)
            assert torch.equal((x.to("remora") + 1).cpu(), x + 1)
            seconds, passed = time.perf_counter() - started, pool.traffic() - before
        finally:
            remora.disconnect()
        assert 4_000_000 <= passed.received[1] <= 4_600_000
        assert 4_000_000 <= passed.sent[1] <= 4_600_000
        assert passed.received[0] < 10_000
        assert passed.between_executors < 10_000
        pool.check("a tensor", passed, seconds)
        with pytest.raises(Impossible, match="a tensor"):
            pool.check("a tensor", passed, seconds / 50)
        prefix = f"remora-{os.getpid()}-"
        assert any(name.startswith(prefix) for name in netns._namespaces())
    assert all(process is not None and process.poll() is not None for process in processes)


@with_namespaces
def test_a_push_goes_from_executor_to_executor_at_the_links_rate_and_not_through_the_client() -> None:
    n = 2_000_000  # floats

    async def push(pool: links.Executors) -> tuple[int, float, Traffic]:
        async with lanes(*pool.urls, tokens=(pool.token, pool.token)) as (a, b):
            await a.peer(1, b)
            name = await a.full(await a.define(FULL), 1, n, 1.5)
            await a.push(1, await a.put(2, 1.0))  # connected
            assert pool.traffic is not None
            before, started = pool.traffic(), time.perf_counter()
            answer = await a.push(1, name)
            return answer.nbytes, time.perf_counter() - started, pool.traffic() - before

    with links.executors(2, links.Link(RATE), kind="netns") as pool:
        nbytes, seconds, passed = asyncio.run(push(pool))
        pool.check("a push", passed, seconds)
        assert 4 * n <= nbytes < 4 * n + 1000
        assert nbytes <= passed.between_executors <= 1.1 * nbytes
        assert (
            passed.received[-1] + passed.sent[-1] < 20_000
        )  # the client said push and heard that it was done
        assert 0.5 * pool.rates.peers <= nbytes / seconds


@with_namespaces
def test_two_networks_do_not_meet() -> None:
    with netns.network(1, RATE) as one, netns.network(1, RATE) as other:
        assert one.address(0) != other.address(0)
        for net_ in (one, other):
            with raw_rate.receiver(net_.address(0), net_.inside(0)) as port:
                assert raw_rate.send(net_.address(0), port, 1000) < 5
        assert one.traffic().sent[0] > 0


@with_namespaces
def test_what_a_killed_run_leaves_is_removed_by_the_next() -> None:
    code = """
import sys, time
from remora.bench import netns
with netns.network(1, 1e6) as made:
    print(made._switch, made._client_device, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        switch, device = process.stdout.readline().split()
        assert switch in netns._namespaces()
        assert netns.remove_stale() == []  # its owner lives
        process.send_signal(signal.SIGKILL)
    assert switch in netns._namespaces()
    assert switch in netns.remove_stale()
    assert switch not in netns._namespaces()
    until = time.monotonic() + 5
    while device in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_bytes_between_executors_are_what_the_client_did_not_get() -> None:
    before = Traffic((10, 10, 10), (10, 10, 10))
    passed = Traffic((1010, 510, 30), (20, 1020, 510)) - before
    assert passed == Traffic((1000, 500, 20), (10, 1010, 500))
    assert passed.between_executors == 1000
    assert passed.busiest == 1010


def test_a_proxy_takes_the_place_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NoNamespaces("this process is not root")

    monkeypatch.setattr(links, "network", refuse)
    with links.executors(1, links.Link(RATE)) as pool:
        assert pool.kind == "proxy"
        assert "not root" in pool.about
        assert 0.7 * RATE <= pool.rates.up <= 1.05 * RATE
        remora.connect(pool.urls[0], pool.token)
        try:
            x = torch.arange(1_000_000, dtype=torch.float32)
            started = time.perf_counter()
            assert torch.equal((x.to("remora") + 1).cpu(), x + 1)
            assert time.perf_counter() - started >= 2 * 4_000_000 / RATE * 0.9
        finally:
            remora.disconnect()
    with pytest.raises(NoNamespaces), links.executors(1, links.Link(RATE), kind="netns"):
        pass


@pytest.mark.parametrize(
    ("link", "kind", "says"),
    [
        (links.Link(1e6), "wormhole", "no kind of link 'wormhole'"),
        (None, "netns", "needs a rate"),
        (links.Link(1e6), "loopback", "loopback has no rate"),
        (links.Link(1e6, 0.01), "netns", "no delay"),
    ],
)
def test_what_a_kind_cannot_do_is_refused(link: links.Link | None, kind: str, says: str) -> None:
    with pytest.raises(ValueError, match=says), links.executors(1, link, kind=kind):
        pass
