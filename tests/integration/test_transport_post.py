"""PostChannel against aiohttp."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import msgspec
import pytest
from transport_peer import GRANT, Peer, serving

from remora.errors import SessionLost
from remora.transport.http import HttpTransport
from remora.transport.interface import Channel, ChannelCut
from remora.transport.stream import Stream
from remora.wire.codec import encode


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer()) as running:
        yield running


@pytest.fixture
def channel(peer: Peer) -> Iterator[Channel]:
    peer.received = 0
    with closing(HttpTransport(peer.url, mode="post")) as transport:
        opened, received = transport.open_channel(GRANT, 1, 0, 2.0)
        assert received == 0
        with closing(opened):
            yield opened


def _frames(n: int, nbytes: int) -> list[bytes]:
    stream = Stream()
    return [stream.send(encode((bytes(nbytes),))) for _ in range(n)]


def test_frames_go_together_and_come_back_in_order(peer: Peer, channel: Channel) -> None:
    frames = _frames(50, 100)
    for frame in frames:
        channel.send(frame)
    assert peer.frames == []
    assert [channel.receive(5.0) for _ in frames] == frames
    assert next(r for r in peer.requests if "wait_s=0" not in r).startswith(
        "POST /v1/sessions/s1/steps?epoch=1&"
    )
    assert len(peer.requests) == 2
    channel.ping()
    assert "received=50" in peer.requests[-1]


def test_many_bytes_are_posted_at_once(peer: Peer, channel: Channel) -> None:
    frames = _frames(3, 100_000)
    for frame in frames:
        channel.send(frame)
    assert peer.frames == frames


def test_long_poll_waits_and_is_heard(channel: Channel) -> None:
    before, started = channel.heard_at, time.monotonic()
    assert channel.receive(0.2) is None
    assert 0.19 < time.monotonic() - started < 0.6
    assert channel.heard_at > before


def test_a_broken_answer_cuts(peer: Peer, channel: Channel) -> None:
    peer.on_frame = "broken"
    channel.send(_frames(1, 1)[0])
    with pytest.raises(ChannelCut, match="frame of 100 bytes"):
        channel.receive(1.0)
    with pytest.raises(ChannelCut):
        channel.send(b"")


def test_session_lost(peer: Peer) -> None:
    with closing(HttpTransport(peer.url, mode="post")) as transport:
        with pytest.raises(SessionLost):
            transport.open_channel(msgspec.structs.replace(GRANT, session="s2"), 1, 0, 2.0)


def test_the_server_goes_away() -> None:
    with serving(Peer()) as peer:
        transport = HttpTransport(peer.url, mode="post")
        channel, _ = transport.open_channel(GRANT, 1, 0, 2.0)
    with pytest.raises(ChannelCut, match="nobody listens"):
        channel.receive(0.1)
    channel.close()
    transport.close()
