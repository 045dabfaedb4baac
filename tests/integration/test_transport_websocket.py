"""WebSocketChannel against aiohttp: order, size, silence, threads, and every way to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import msgspec
import pytest
from transport_peer import GRANT, Peer, serving

from remora.errors import Refused, SessionLost
from remora.transport.http import HttpTransport
from remora.transport.interface import Channel, ChannelCut
from remora.wire.limits import MAX_FRAME_NBYTES


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer()) as running:
        yield running


@pytest.fixture
def channel(peer: Peer) -> Iterator[Channel]:
    with closing(HttpTransport(peer.url)) as transport:
        opened, _ = transport.open_channel(GRANT, 1, 0, 2.0)
        with closing(opened):
            yield opened


def test_opening_tells_both_ends_what_arrived(peer: Peer) -> None:
    peer.received = 41
    with closing(HttpTransport(peer.url)) as transport:
        channel, received = transport.open_channel(GRANT, 7, 12, 2.0)
        channel.close()
    assert received == 41
    assert peer.requests == ["GET /v1/sessions/s1/steps?epoch=7&received=12"]


def test_frames_come_back_in_order(peer: Peer, channel: Channel) -> None:
    frames = [bytes([i % 256]) * (i * 37 % 5000) for i in range(500)]
    for frame in frames:
        channel.send(frame)
    assert [channel.receive(5.0) for _ in frames] == frames
    assert channel.receive(0.0) is None
    assert channel.bytes_sent > sum(map(len, frames))
    assert channel.bytes_received > sum(map(len, frames))


def test_a_burst_in_one_read(peer: Peer, channel: Channel) -> None:
    peer.on_frame = "burst"
    channel.send(b"go")
    time.sleep(0.2)
    assert [channel.receive(0.0) for _ in range(11)] == [*(bytes([i]) for i in range(10)), None]


def test_the_largest_frames_both_ways_at_once(peer: Peer, channel: Channel) -> None:
    frames = [bytes([i]) * MAX_FRAME_NBYTES for i in range(4)]
    for frame in frames:  # more than the sockets hold: the peer stops reading until it is read
        channel.send(frame)
    assert [channel.receive(10.0) for _ in frames] == frames


def test_silence_lasts_as_long_as_asked(channel: Channel) -> None:
    started = time.monotonic()
    assert channel.receive(0.2) is None
    assert 0.19 < time.monotonic() - started < 0.5


def test_ping_is_heard(channel: Channel) -> None:
    before = channel.heard_at
    time.sleep(0.02)
    channel.ping()
    assert channel.receive(0.1) is None
    assert channel.heard_at > before


def test_pings_from_another_thread(peer: Peer, channel: Channel) -> None:
    stop = threading.Event()
    pings = 0

    def beat() -> None:
        nonlocal pings
        while not stop.is_set():
            channel.ping()
            pings += 1

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        frames = [bytes([i % 256]) * (1 << (i % 21)) for i in range(200)]
        for frame in frames:
            channel.send(frame)
            assert channel.receive(5.0) == frame
    finally:
        stop.set()
        thread.join()
    assert pings > 10


def test_close_from_another_thread_ends_receive(channel: Channel) -> None:
    timer = threading.Timer(0.1, channel.close)
    timer.start()
    started = time.monotonic()
    with pytest.raises(ChannelCut, match="closed here"):
        channel.receive(10.0)
    assert time.monotonic() - started < 2.0
    timer.join()
    with pytest.raises(ChannelCut):
        channel.ping()


@pytest.mark.parametrize(
    ("how", "story"),
    [
        ("close", "1008 .*lease ended"),
        ("abort", "without a word|reset"),
        ("too much", "exceeds limit|too big"),
        ("text", "text"),
    ],
)
def test_a_cut_tells_why(peer: Peer, channel: Channel, how: str, story: str) -> None:
    peer.on_frame = how
    channel.send(b"go")
    with pytest.raises(ChannelCut, match=story):
        channel.receive(5.0)
    with pytest.raises(ChannelCut, match=story):
        channel.send(b"more")


def test_frames_before_a_close_are_delivered(peer: Peer, channel: Channel) -> None:
    channel.send(b"one")
    time.sleep(0.1)
    peer.on_frame = "close"
    channel.send(b"two")
    time.sleep(0.1)
    assert channel.receive(1.0) == b"one"
    with pytest.raises(ChannelCut, match="lease ended"):
        channel.receive(1.0)


def test_session_lost_and_refused(peer: Peer) -> None:
    with closing(HttpTransport(peer.url)) as transport:
        with pytest.raises(SessionLost, match="session s2 is over"):
            transport.open_channel(msgspec.structs.replace(GRANT, session="s2"), 1, 0, 2.0)
    with closing(HttpTransport(peer.url + "/elsewhere")) as transport:
        with pytest.raises(Refused, match="404"):
            transport.open_channel(GRANT, 1, 0, 2.0)
