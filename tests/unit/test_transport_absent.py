"""The transport to nobody takes frames as a real one does, and has nothing to give."""

from __future__ import annotations

import pytest

from remora.errors import ProtocolError, Refused
from remora.transport.absent import AbsentTransport
from remora.transport.stream import Stream
from remora.wire.codec import decode_envelope, encode
from remora.wire.messages import Grant, OpenSession

GRANT = Grant("s", "", 1, "absent", 2, "2.13", "cpu", "", 900.0, 1 << 30, 64, 1 << 20, "me")


@pytest.fixture
def transport() -> AbsentTransport:
    return AbsentTransport("estimate://0", GRANT)


def test_every_frame_is_acknowledged_and_counted(transport) -> None:
    assert transport.open_session(OpenSession(2, 2, "2.13", "me", 0), 1.0) is GRANT
    channel, received = transport.open_channel(GRANT, 1, 0, 1.0)
    assert received == 0
    stream = Stream()
    frames = [stream.send(encode([])) for _ in range(3)]
    for frame in frames:
        channel.send(frame)
    assert stream.kept_frames == 3
    stream.receive(decode_envelope(channel.receive(1.0)))
    assert stream.kept_frames == 0
    assert channel.receive(1.0) is None
    assert channel.bytes_sent == sum(map(len, frames))


def test_a_frame_that_is_missing_is_noticed(transport) -> None:
    channel, _ = transport.open_channel(GRANT, 1, 0, 1.0)
    stream = Stream()
    stream.send(encode([]))
    with pytest.raises(ProtocolError, match="some were lost"):
        channel.send(stream.send(encode([])))


def test_it_has_nothing(transport) -> None:
    assert transport.query_blobs(GRANT, ("00",)).held == ()
    assert transport.op_table(1.0) == transport.op_schemas(1.0) == {}
    transport.put_blob(GRANT, "00", memoryview(bytes(10)))
    assert transport.bytes_sent == 10
    with pytest.raises(Refused, match="estimate://0: an executor that is not there has no values"):
        transport.get_bulk(GRANT, "x", memoryview(bytearray(1)))
    with pytest.raises(Refused, match="no status"):
        transport.status(1.0)
