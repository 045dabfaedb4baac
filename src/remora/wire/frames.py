"""Numbered frames: what a stream carries the messages in."""

from __future__ import annotations

from typing import Annotated

import msgspec

from remora.wire.limits import MAX_MESSAGES
from remora.wire.messages import Meta, ToClient, ToExecutor

Sequence = Annotated[int, Meta(ge=0, le=1 << 53)]


class StepFrame(msgspec.Struct, frozen=True, array_like=True):
    """Client to executor. seq counts frames from 1 (0: carries no messages, only the ack)."""

    seq: Sequence
    ack: Sequence  # highest seq received from the peer
    messages: Annotated[tuple[ToExecutor, ...], Meta(max_length=MAX_MESSAGES)] = ()


class ReplyFrame(msgspec.Struct, frozen=True, array_like=True):
    """Executor to client."""

    seq: Sequence
    ack: Sequence
    messages: Annotated[tuple[ToClient, ...], Meta(max_length=MAX_MESSAGES)] = ()


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """Any frame with its messages left encoded: what the front reads before it passes a frame on."""

    seq: Sequence
    ack: Sequence
    messages: msgspec.Raw = msgspec.Raw(b"\x90")
