"""Shared links: fair shares, conservation, order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.sim.agenda import Agenda
from remora.sim.network import PACKET_NBYTES, Channel, Network, Port, Route

RATE, LATENCY_S = 1e6, 0.01


def _world() -> tuple[Agenda, Network, Route]:
    agenda = Agenda()
    return agenda, Network(agenda), Route(Port(RATE), Port(RATE), LATENCY_S, RATE)


def test_one_transfer_takes_its_bytes_over_the_rate_and_the_latency() -> None:
    agenda, network, route = _world()
    done: list[float] = []
    network.send(route, 500_000, lambda: done.append(agenda.now_s))
    agenda.run()
    assert done == [pytest.approx(0.51)]


def test_two_transfers_share_a_port_and_the_longer_one_gets_what_the_other_leaves() -> None:
    agenda, network, _ = _world()
    port, done = Port(RATE), dict[str, float]()
    one, other = Route(port, Port(RATE), 0.0, RATE), Route(port, Port(RATE), 0.0, RATE)
    network.send(one, 100_000, lambda: done.setdefault("short", agenda.now_s))
    network.send(other, 300_000, lambda: done.setdefault("long", agenda.now_s))
    agenda.run()
    assert done == {"short": pytest.approx(0.2), "long": pytest.approx(0.4)}
    assert port.busy_s == pytest.approx(0.4)


def test_the_narrower_of_two_ports_decides() -> None:
    agenda, network, _ = _world()
    done: list[float] = []
    network.send(Route(Port(RATE), Port(RATE / 4), 0.0, RATE), 100_000, lambda: done.append(agenda.now_s))
    agenda.run()
    assert done == [pytest.approx(0.4)]


def test_frames_of_a_channel_do_not_overtake() -> None:
    agenda, network, route = _world()
    channel, order = Channel(agenda, network, route), list[int]()
    for number, nbytes in enumerate((1400, 10, 50_000, 10, 1400, 20)):
        channel.send(nbytes, order.append, number)
    agenda.run()
    assert order == [0, 1, 2, 3, 4, 5]


def test_a_frame_leaves_while_the_one_before_it_is_on_its_way() -> None:
    agenda, network, _ = _world()
    channel, done = Channel(agenda, network, Route(Port(RATE), Port(RATE), 1.0, RATE)), list[float]()
    for _ in range(5):
        channel.send(10_000, lambda: done.append(agenda.now_s))
    agenda.run()
    assert done == pytest.approx([1.01, 1.02, 1.03, 1.04, 1.05])


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 200_000), st.floats(0, 0.5)),
        max_size=25,
    )
)
def test_bytes_are_kept_and_no_port_is_faster_than_its_rate(sends: list[tuple[int, int, int, float]]) -> None:
    agenda = Agenda()
    network = Network(agenda)
    ports = [(Port(RATE), Port(RATE)) for _ in range(4)]
    arrived: list[tuple[int, int, float, float]] = []
    for source, target, nbytes, at_s in sends:
        route = Route(ports[source][0], ports[target][1], 0.0, RATE)

        def begin(
            route: Route = route, nbytes: int = nbytes, target: int = target, at_s: float = at_s
        ) -> None:
            network.send(route, nbytes, lambda: arrived.append((target, nbytes, at_s, agenda.now_s)))

        agenda.at(at_s, begin)
    agenda.run()
    assert len(arrived) == len(sends)
    assert (
        sum(port.nbytes for port, _ in ports)
        == sum(port.nbytes for _, port in ports)
        == sum(s[2] for s in sends)
    )
    for _, nbytes, began_s, ended_s in arrived:
        assert ended_s - began_s >= nbytes / RATE * (1 - 1e-9)
    for target, (_, port) in enumerate(ports):
        large = [one for one in arrived if one[0] == target and one[1] > PACKET_NBYTES]
        if large:
            span_s = max(one[3] for one in large) - min(one[2] for one in large)
            assert sum(one[1] for one in large) <= RATE * span_s * (1 + 1e-6)
            assert port.busy_s * RATE * (1 + 1e-6) >= sum(one[1] for one in large)
        assert not port.passing


@given(st.lists(st.floats(0, 10), max_size=40))
def test_events_happen_in_the_order_of_their_time_then_of_their_announcement(times: list[float]) -> None:
    agenda, seen = Agenda(), list[tuple[float, int]]()
    for number, time_s in enumerate(times):
        agenda.at(time_s, lambda number=number: seen.append((agenda.now_s, number)))
    agenda.run()
    assert seen == sorted((time_s, number) for number, time_s in enumerate(times))
    assert agenda.events == len(times)
    assert agenda.waiting == 0
