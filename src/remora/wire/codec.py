"""Encoding and decoding of frames; a decoder never raises anything but ProtocolError."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from remora.errors import ProtocolError
from remora.wire.frames import Envelope, ReplyFrame, StepFrame
from remora.wire.limits import MAX_FRAME_NBYTES, MAX_MESSAGES
from remora.wire.messages import ToClient, ToExecutor

T = TypeVar("T")

encode = msgspec.msgpack.Encoder().encode
_envelope = msgspec.msgpack.Decoder(Envelope)
_step = msgspec.msgpack.Decoder(StepFrame)
_reply = msgspec.msgpack.Decoder(ReplyFrame)
_count = msgspec.Meta(max_length=MAX_MESSAGES)
_to_executor = msgspec.msgpack.Decoder(Annotated[tuple[ToExecutor, ...], _count])
_to_client = msgspec.msgpack.Decoder(Annotated[tuple[ToClient, ...], _count])


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes | memoryview) -> T:
    if len(data) > MAX_FRAME_NBYTES:
        raise ProtocolError(f"frame of {len(data)} bytes; the limit is {MAX_FRAME_NBYTES}")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed frame: {error}") from None


def decode_envelope(data: bytes | memoryview) -> Envelope:
    return _decode(_envelope, data)


def decode_step(data: bytes | memoryview) -> StepFrame:
    return _decode(_step, data)


def decode_reply(data: bytes | memoryview) -> ReplyFrame:
    return _decode(_reply, data)


def decode_to_executor(data: bytes | memoryview) -> tuple[ToExecutor, ...]:
    """The messages of a step frame's envelope."""
    return _decode(_to_executor, data)


def decode_to_client(data: bytes | memoryview) -> tuple[ToClient, ...]:
    """The messages of a reply frame's envelope."""
    return _decode(_to_client, data)
