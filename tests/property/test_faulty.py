"""Whatever the script of faults, a client that resumes gets every answer once, in order, and so does its peer."""

from __future__ import annotations

import random
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remora.errors import ConnectError
from remora.transport.faulty import Cut, Delay, Fault, FaultyTransport, Way, random_script
from remora.transport.inprocess import InProcessTransport
from remora.transport.interface import Buffer, Channel, ChannelCut
from remora.transport.stream import Stream
from remora.wire.codec import decode_envelope, encode
from remora.wire.messages import Grant, OpenSession, Status

GRANT = Grant("s1", "secret", 1, "peer", 1, "2.13", "cpu", "0" * 64, 900.0, 1 << 30, 64, 1 << 20, "me")


@dataclass
class EchoPort:
    endpoint: EchoEndpoint
    reply: Callable[[bytes], None]
    received: int

    def step(self, frame: bytes) -> None:
        if self.endpoint.port is not self:
            raise ChannelCut("another channel has taken this one's place")
        endpoint = self.endpoint
        endpoint.arrived += 1
        envelope = decode_envelope(frame)
        if endpoint.stream.receive(envelope):
            endpoint.got.append(bytes(envelope.messages))
            self.reply(endpoint.stream.send(bytes(envelope.messages)))

    def detach(self) -> None:
        if self.endpoint.port is self:
            self.endpoint.port = None


@dataclass
class EchoEndpoint:
    """An executor of one session that sends back what it gets."""

    address: str = "inprocess"
    blobs: MutableMapping[str, Buffer] = field(default_factory=dict)
    stream: Stream = field(default_factory=Stream)
    port: EchoPort | None = None
    got: list[bytes] = field(default_factory=list)
    arrived: int = 0  # frames, with those that came twice

    def open(self, wants: OpenSession) -> Grant:
        return GRANT

    def close(self, session: str) -> None: ...

    def attach(
        self,
        session: str,
        epoch: int,
        received: int,
        reply: Callable[[bytes], None],
        cut: Callable[[str], None],
    ) -> EchoPort:
        self.port = EchoPort(self, reply, self.stream.received)
        for frame in self.stream.resume(received):
            reply(frame)
        return self.port

    def bulk(self, session: str, bulk: str) -> Buffer:
        raise KeyError(bulk)

    def ops(self) -> dict[str, str]:
        return {}

    def status(self) -> Status:
        raise NotImplementedError


class Client:
    """What a session does with a channel, in small."""

    def __init__(self, transport: FaultyTransport) -> None:
        self.transport = transport
        self.stream = Stream()
        self.got: list[bytes] = []
        self.story: list[str] = []
        self.channel = self.connect()

    def connect(self) -> Channel:
        while True:
            try:
                channel, arrived = self.transport.open_channel(GRANT, 1, self.stream.received, 1.0)
                self.story.append(f"connected at {arrived}")
                for frame in self.stream.resume(arrived):
                    channel.send(frame)
                return channel
            except ChannelCut:
                channel.close()
                self.story.append("cut on resuming")
            except ConnectError:
                self.story.append("refused")

    def send(self, message: bytes) -> None:
        frame = self.stream.send(message)
        try:
            self.channel.send(frame)
        except ChannelCut:
            self.reconnect()

    def receive(self, timeout_s: float = 0.0) -> bool:
        try:
            frame = self.channel.receive(timeout_s)
        except ChannelCut:
            self.reconnect()
            return True
        if frame is None:
            return False
        envelope = decode_envelope(frame)
        if self.stream.receive(envelope):
            self.got.append(bytes(envelope.messages))
        return True

    def reconnect(self) -> None:
        self.story.append(f"cut after {len(self.got)}")
        self.channel.close()
        self.channel = self.connect()


def run(script: tuple[Fault, ...], messages: int, rng: random.Random) -> tuple[EchoEndpoint, Client]:
    slept: list[float] = []
    endpoint = EchoEndpoint()
    client = Client(FaultyTransport(InProcessTransport(endpoint), script, slept.append))
    for i in range(messages):
        client.send(encode((i,)))
        while rng.random() < 0.6 and client.receive():
            pass
    while len(client.got) < messages:
        if not client.receive(1.0):
            client.reconnect()  # silence, longer than any delay: the heartbeat would notice
    client.transport.close()
    return endpoint, client


@given(seed=st.integers(0, 1 << 32), channels=st.integers(0, 6), messages=st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_every_message_once_in_order_both_ways(seed: int, channels: int, messages: int) -> None:
    script = random_script(random.Random(seed), channels, frames=12)
    expected = [encode((i,)) for i in range(messages)]
    endpoint, client = run(script, messages, random.Random(seed))
    assert endpoint.got == expected
    assert client.got == expected
    assert run(script, messages, random.Random(seed))[1].story == client.story


@pytest.mark.parametrize(
    ("cut", "resumed_at"),
    [
        (Cut(1, Way.STEPS, 4), 3),
        (Cut(1, Way.STEPS, 4, arrives=True), 4),
        (Cut(1, Way.STEPS, 4, arrives=True, twice=2), 2),
    ],
)
def test_a_cut_happens_at_its_frame(cut: Cut, resumed_at: int) -> None:
    endpoint = EchoEndpoint()
    client = Client(FaultyTransport(InProcessTransport(endpoint), [cut]))
    for i in range(6):
        client.send(encode((i,)))
    assert client.story[:3] == ["connected at 0", "cut after 0", f"connected at {resumed_at}"]
    assert endpoint.got == [encode((i,)) for i in range(6)]
    assert endpoint.arrived == 6 + (4 - resumed_at if cut.arrives else 0)


def test_refused_for_a_while() -> None:
    endpoint = EchoEndpoint()
    transport = FaultyTransport(InProcessTransport(endpoint), [Cut(1, Way.STEPS, 1, refused=3)])
    client = Client(transport)
    client.send(encode((1,)))
    client.send(encode((2,)))
    assert client.story == [
        "connected at 0",
        "cut after 0",
        "refused",
        "refused",
        "refused",
        "connected at 0",
    ]


def test_sends_that_fill_the_buffer_seem_to_work() -> None:
    channel, _ = FaultyTransport(
        InProcessTransport(EchoEndpoint()), [Cut(1, Way.STEPS, 1, unnoticed=2)]
    ).open_channel(GRANT, 1, 0, 1.0)
    stream = Stream()
    for _ in range(3):
        channel.send(stream.send(encode((1,))))
    with pytest.raises(ChannelCut):
        channel.send(stream.send(encode((1,))))


def test_replies_that_had_arrived_are_read_after_the_cut() -> None:
    endpoint = EchoEndpoint()
    transport = FaultyTransport(InProcessTransport(endpoint), [Cut(1, Way.STEPS, 4, arrives=True, drained=2)])
    channel, _ = transport.open_channel(GRANT, 1, 0, 1.0)
    stream = Stream()
    for i in range(4):
        channel.send(stream.send(encode((i,))))
    seqs = [decode_envelope(channel.receive(0.0) or b"").seq for _ in range(2)]
    assert seqs == [1, 2]
    with pytest.raises(ChannelCut):
        channel.receive(0.0)


def test_replies_that_were_counted_late_come_twice() -> None:
    cut = Cut(1, Way.REPLIES, 3, arrives=True, twice=2)
    transport = FaultyTransport(InProcessTransport(EchoEndpoint()), [cut])
    stream = Stream()
    channel, _ = transport.open_channel(GRANT, 1, 0, 1.0)
    for i in range(4):
        channel.send(stream.send(encode((i,))))
    assert [decode_envelope(channel.receive(0.0) or b"").seq for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ChannelCut):
        channel.receive(0.0)
    channel, _ = transport.open_channel(GRANT, 1, 3, 1.0)
    assert [decode_envelope(channel.receive(0.0) or b"").seq for _ in range(3)] == [2, 3, 4]


def test_a_silent_cut_says_nothing_and_sleeps() -> None:
    slept: list[float] = []
    transport = FaultyTransport(
        InProcessTransport(EchoEndpoint()), [Cut(1, Way.STEPS, 1, silent=True)], slept.append
    )
    channel, _ = transport.open_channel(GRANT, 1, 0, 1.0)
    heard_at = channel.heard_at
    for _ in range(5):
        channel.send(Stream().send(encode((1,))))
    channel.ping()
    assert channel.receive(7.0) is None
    assert slept == [7.0]
    assert channel.heard_at == heard_at
    channel.close()
    with pytest.raises(ChannelCut):
        channel.receive(0.0)


def test_a_delayed_reply_keeps_to_timeouts_and_order() -> None:
    slept: list[float] = []
    script = [Delay(1, Way.STEPS, 1, 0.5), Delay(1, Way.REPLIES, 1, 3.0)]
    transport = FaultyTransport(InProcessTransport(EchoEndpoint()), script, slept.append)
    channel, _ = transport.open_channel(GRANT, 1, 0, 1.0)
    stream = Stream()
    for i in range(2):
        channel.send(stream.send(encode((i,))))
    assert channel.receive(1.0) is None
    assert channel.receive(1.0) is None
    assert [decode_envelope(channel.receive(1.0) or b"").seq for _ in range(2)] == [1, 2]
    assert slept == [0.5, 1.0, 1.0, 1.0]
