"""The link decides when a cut is mended, borne, or the end; clock and network are the test's."""

from __future__ import annotations

import pytest

from remora.config import ClientSettings
from remora.errors import AuthError, ConnectError, NobodyListens, Refused, SessionLost
from remora.session.link import Link
from remora.transport.interface import ChannelCut
from remora.transport.stream import Stream
from remora.wire.codec import decode_envelope, decode_to_executor, encode
from remora.wire.messages import Barrier, Done, Failed, Grant, Lost

GRANT = Grant("s1", "secret", 1, "here", 1, "2.13", "cpu", "", 900.0, 1 << 30, 4, 1 << 20, "t/u")


class Network:
    """A transport and its channels; `plan` says what each attempt to reach the executor gives."""

    address = "http://box:8470"

    def __init__(self):
        self.now = 0.0
        self.plan = []
        self.got = []  # messages, as the executor acts on them
        self.stream = Stream()
        self.answers = True
        self.notices = []
        self.opened = 0

    def open_channel(self, grant, epoch, received, timeout_s):
        self.opened += 1
        if self.plan and (error := self.plan.pop(0)) is not None:
            self.now += 0.1
            raise error
        channel = Channel(self)
        channel.arrived += self.stream.resume(received)
        return channel, self.stream.received

    def link(self, **settings):
        link = Link(
            self,
            GRANT,
            ClientSettings(**settings),
            self.notices.append,
            lambda segment, row: f"row {row} of the user's",
            lambda: self.now,
            self.sleep,
        )
        link.open(2.0)
        return link

    def sleep(self, seconds):
        self.now += seconds

    def act(self, frame):
        envelope = decode_envelope(frame)
        if self.stream.receive(envelope):
            self.got += decode_to_executor(bytes(envelope.messages))


class Channel:
    def __init__(self, network):
        self.network = network
        self.arrived = []
        self.cut = self.silent = self.interrupt = False
        self.bytes_sent = self.bytes_received = 0
        self.heard_at = network.now

    def send(self, frame):
        if self.interrupt:
            raise KeyboardInterrupt
        if self.cut:
            raise ChannelCut("reset")
        if self.silent:
            return
        self.network.act(frame)
        if self.network.answers and (barriers := [m for m in self.network.got if isinstance(m, Barrier)]):
            self.network.got = [m for m in self.network.got if m not in barriers]
            self.arrived.append(self.network.stream.send(encode([Done(b.ticket) for b in barriers])))

    def receive(self, timeout_s):
        if self.interrupt:
            raise KeyboardInterrupt
        if self.cut:
            raise ChannelCut("reset")
        if self.arrived and not self.silent:
            return self.arrived.pop(0)
        self.network.now += timeout_s
        return None

    def ping(self):
        pass

    def close(self):
        self.cut = True


@pytest.fixture
def network():
    return Network()


def ask(link, ticket):
    link.commit([Barrier(ticket)])
    link.transmit()
    return link.wait(ticket)


def test_a_question_is_answered(network):
    link = network.link()
    assert ask(link, 1) == Done(1)
    assert link.round_trips == 1


def test_a_cut_is_mended_and_said(network):
    link = network.link()
    link.channel.cut = True
    network.plan = [ConnectError("timed out"), ConnectError("timed out"), None]
    assert ask(link, 1) == Done(1)
    assert link.reconnects == 1
    assert "trying again for up to 60 s" in network.notices[0]
    assert "back after" in network.notices[1]


@pytest.mark.parametrize("error", [Refused("no"), AuthError("who?"), SessionLost("gone")])
def test_a_refusal_is_final_at_once(network, error):
    link = network.link()
    link.channel.cut = True
    network.plan = [error] * 99
    with pytest.raises(SessionLost, match=r"http://box:8470 is lost: (no|who\?|gone)"):
        ask(link, 1)
    assert network.opened == 2
    with pytest.raises(SessionLost):
        link.transmit()
    assert network.opened == 2


def test_where_nobody_listens_any_more_it_ends_within_2_s(network):
    link = network.link()
    link.channel.cut = True
    network.plan = [NobodyListens("refused")] * 99
    with pytest.raises(SessionLost):
        ask(link, 1)
    assert 1 < network.now < 2


def test_an_unreachable_executor_is_tried_through_the_grace_period(network):
    link = network.link(grace_s=30.0)
    link.channel.cut = True
    network.plan = [ConnectError("no route")] * 999
    with pytest.raises(SessionLost, match="not reached again for 3"):
        ask(link, 1)
    assert 30 <= network.now < 33


def test_silence_without_a_sign_of_life_counts_as_a_cut(network):
    link = network.link()
    link.channel.silent = True
    assert ask(link, 1) == Done(1)
    assert 10 < network.now < 14
    assert "no sign of life" in network.notices[0]


@pytest.mark.parametrize("where", ["send", "receive"])
def test_an_interrupt_loses_nothing_and_repeats_nothing(network, where):
    link = network.link()
    link.commit([Barrier(1)])
    if where == "receive":
        network.answers = False
        link.transmit()
    link.channel.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        link.transmit() if where == "send" else link.wait(1)
    network.answers = True
    assert link.channel is None
    assert ask(link, 2) == Done(2)
    assert network.stream.received == 2
    assert network.notices == []  # the user knows


def test_too_much_unacknowledged_waits(network):
    link = network.link()
    for ticket in range(GRANT.in_flight_frames + 1):
        link.commit([Barrier(ticket)])
    link.transmit()
    assert link.stream.kept_frames <= GRANT.in_flight_frames


def test_a_failure_ends_the_wait_and_a_lost_session_all_waits(network):
    link = network.link()
    network.answers = False
    link.channel.arrived.append(network.stream.send(encode([Failed(1, 2, 3, "index", "bad")])))
    assert ask(link, 1) is None
    assert link.failed.message == "bad"
    link.failed = None
    link.channel.arrived.append(network.stream.send(encode([Lost("the worker died", 2, 3)])))
    with pytest.raises(SessionLost, match="the worker died, which is row 3 of the user's"):
        ask(link, 2)


def test_requests_beside_the_channel_go_on_after_a_cut(network):
    link = network.link()
    answers = iter([ConnectError("broken"), ConnectError("broken"), 7])

    def request():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert link.persist(request) == 7
    assert link.reconnects == 2


def test_an_idle_link_resumes_quietly_but_gives_nothing_up(network):
    link = network.link()
    link.channel.cut = True
    network.plan = [NobodyListens("refused"), None]
    link.idle()
    link.idle()
    assert link.lost is None
    assert link.channel is None
    link.idle()
    assert link.channel is not None
    assert network.notices == []
