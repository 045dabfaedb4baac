"""InProcessTransport: frames, ends, blobs and bulk, as HTTP has them."""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping

import pytest
from blake3 import blake3

from remora.errors import ConnectError, ProtocolError, Refused, SessionLost
from remora.transport.inprocess import InProcessTransport
from remora.transport.interface import Buffer, ChannelCut, Transport
from remora.wire.messages import Grant, OpenSession, Status

GRANT = Grant("s1", "secret", 1, "peer", 1, "2.13", "cpu", "0" * 64, 900.0, 1 << 30, 64, 1 << 20, "me")
STATUS = Status("peer", "0.1", 1, "2.13", "cpu", 1.0, 1 << 30, 0, 0, 1, {})


class Upper:
    """An executor, and its one port, that answers in capitals; b'end' ends the channel."""

    address = "inprocess"
    received = 5

    def __init__(self) -> None:
        self.blobs: MutableMapping[str, Buffer] = {}
        self.detached = 0

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
    ) -> Upper:
        if session != GRANT.session:
            raise SessionLost(session)
        self.reply, self.cut = reply, cut
        return self

    def step(self, frame: bytes) -> None:
        if frame == b"bad":
            raise ProtocolError("bad frame")
        self.reply(frame.upper())
        if frame == b"end":
            self.cut("lease ended")

    def detach(self) -> None:
        self.detached += 1

    def bulk(self, session: str, bulk: str) -> Buffer:
        return {"b": b"0123456789"}[bulk]

    def ops(self) -> dict[str, str]:
        return {"aten.add": "d1"}

    def status(self) -> Status:
        return STATUS


@pytest.fixture
def endpoint() -> Upper:
    return Upper()


@pytest.fixture
def transport(endpoint: Upper) -> Transport:
    return InProcessTransport(endpoint)


def test_control(transport: Transport) -> None:
    assert transport.open_session(OpenSession(2, 2, "2.13"), 1.0) == GRANT
    assert transport.op_table(1.0) == {"aten.add": "d1"}
    assert transport.status(1.0) == STATUS
    transport.close_session(GRANT, 1.0)
    transport.close()
    with pytest.raises(ConnectError):
        transport.status(1.0)


def test_frames_and_their_end(endpoint: Upper, transport: Transport) -> None:
    channel, received = transport.open_channel(GRANT, 1, 0, 1.0)
    assert received == 5
    channel.send(b"one")
    channel.send(b"end")
    assert channel.receive(1.0) == b"ONE"
    assert channel.receive(0.0) == b"END"
    for _ in range(2):
        with pytest.raises(ChannelCut, match="lease ended"):
            channel.receive(0.0)
    with pytest.raises(ChannelCut, match="lease ended"):
        channel.send(b"more")
    channel.close()
    assert endpoint.detached == 1
    assert (channel.bytes_sent, channel.bytes_received) == (6, 6)


def test_a_bad_frame_ends_the_channel(transport: Transport) -> None:
    channel, _ = transport.open_channel(GRANT, 1, 0, 1.0)
    channel.send(b"bad")
    with pytest.raises(ChannelCut, match="1008 bad frame"):
        channel.receive(0.0)


def test_a_reply_from_another_thread_wakes_the_receiver(endpoint: Upper, transport: Transport) -> None:
    channel, _ = transport.open_channel(GRANT, 1, 0, 1.0)
    assert channel.receive(0.01) is None
    timer = threading.Timer(0.05, endpoint.reply, (b"late",))
    timer.start()
    assert channel.receive(5.0) == b"late"
    timer.join()
    timer = threading.Timer(0.05, channel.close)
    timer.start()
    with pytest.raises(ChannelCut, match="closed here"):
        channel.receive(5.0)
    timer.join()


def test_blobs_are_content_addressed_and_possession_is_proven(endpoint: Upper, transport: Transport) -> None:
    data = b"weights"
    digest = blake3(data).hexdigest()
    told: list[int] = []
    transport.put_blob(GRANT, digest, memoryview(data), told.append)
    assert (endpoint.blobs, told) == ({digest: data}, [7])
    answer = transport.query_blobs(GRANT, (digest, "f" * 64))
    assert answer.held == (digest,)
    transport.prove_blobs(GRANT, {digest: blake3(data, key=bytes.fromhex(answer.nonce)).hexdigest()})
    with pytest.raises(Refused, match="no possession"):
        transport.prove_blobs(GRANT, {digest: digest})
    with pytest.raises(Refused, match="another hash"):
        transport.put_blob(GRANT, digest, memoryview(b"other"))


def test_bulk(transport: Transport) -> None:
    into = bytearray(10)
    transport.get_bulk(GRANT, "b", memoryview(into))
    assert into == b"0123456789"
    with pytest.raises(ProtocolError, match="10 bytes of value 'b', expected 3"):
        transport.get_bulk(GRANT, "b", memoryview(bytearray(3)))
    with pytest.raises(Refused, match="no value 'c'"):
        transport.get_bulk(GRANT, "c", memoryview(into))
