"""Every message survives its encoding; every other string of bytes is refused, and nothing else happens.

The strategies are read off the messages' own types, so a new message or field is covered when it is written.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from remora.errors import ProtocolError
from remora.wire.codec import (
    decode_envelope,
    decode_reply,
    decode_step,
    decode_to_client,
    decode_to_executor,
    encode,
)
from remora.wire.frames import Envelope, ReplyFrame, StepFrame
from remora.wire.limits import MAX_FRAME_NBYTES, MAX_MESSAGES
from remora.wire.messages import Free, Put, ToClient, ToExecutor

DECODERS: list[Callable[[bytes], Any]] = [
    decode_envelope,
    decode_step,
    decode_reply,
    decode_to_executor,
    decode_to_client,
]


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Valid values of a msgspec type, kept small."""
    match kind:
        case inspect.IntType(gt=gt, ge=ge, lt=lt, le=le):
            low = -(1 << 63) if ge is None and gt is None else ge if ge is not None else gt + 1
            high = (1 << 64) - 1 if le is None and lt is None else le if le is not None else lt - 1
            return st.integers(low, high)
        case inspect.FloatType():
            return st.floats(allow_nan=False)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.StrType(max_length=length, pattern=pattern):
            if pattern:
                return st.from_regex(pattern, fullmatch=True).filter(lambda text: len(text) <= length)
            return st.text(st.characters(codec="utf-8"), max_size=min(length or 20, 20))
        case inspect.BytesType(min_length=least, max_length=most):
            return st.binary(min_size=least or 0, max_size=max(least or 0, min(most or 40, 40)))
        case inspect.VarTupleType(item_type=item):
            return st.lists(values(item), max_size=5).map(tuple)
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(values, items))
        case inspect.UnionType(types=kinds):
            return st.one_of([values(one) for one in kinds])
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, *[values(field.type) for field in fields])
    raise AssertionError(f"no strategy for {kind}; add one")


def messages(union: Any) -> st.SearchStrategy[Any]:
    return st.one_of([values(inspect.type_info(kind)) for kind in get_args(union)])


step_messages = st.lists(messages(ToExecutor), max_size=5).map(tuple)
reply_messages = st.lists(messages(ToClient), max_size=5).map(tuple)
frames = (
    st.builds(StepFrame, st.integers(0, 1 << 53), st.integers(0, 1 << 53), step_messages)
    | st.builds(ReplyFrame, st.integers(0, 1 << 53), st.integers(0, 1 << 53), reply_messages)
    | step_messages
    | reply_messages
)


@st.composite
def mutated(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """Valid bytes with a few bytes changed, inserted, cut or repeated."""
    body = bytearray(draw(originals))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        piece = draw(st.binary(max_size=6))
        match draw(st.sampled_from(["overwrite", "insert", "cut", "truncate", "repeat"])):
            case "overwrite":
                body[at : at + len(piece)] = piece
            case "insert":
                body[at:at] = piece
            case "cut":
                del body[at : at + len(piece)]
            case "truncate":
                del body[at:]
            case "repeat":
                body[at:at] = body[at : at + 20]
    return bytes(body)


@pytest.mark.parametrize("kind", get_args(ToExecutor), ids=lambda kind: kind.__name__)
@given(st.data())
def test_step_message_round_trips(kind: type, data: st.DataObject) -> None:
    sent = (data.draw(values(inspect.type_info(kind))),)
    assert decode_to_executor(encode(sent)) == sent
    frame = StepFrame(7, 3, sent)
    assert decode_step(encode(frame)) == frame


@pytest.mark.parametrize("kind", get_args(ToClient), ids=lambda kind: kind.__name__)
@given(st.data())
def test_reply_message_round_trips(kind: type, data: st.DataObject) -> None:
    sent = (data.draw(values(inspect.type_info(kind))),)
    assert decode_to_client(encode(sent)) == sent
    frame = ReplyFrame(7, 3, sent)
    assert decode_reply(encode(frame)) == frame


@given(step_messages, st.integers(0, 1 << 53), st.integers(0, 1 << 53))
def test_envelope_carries_the_messages_untouched(sent: tuple[Any, ...], seq: int, ack: int) -> None:
    frame = encode(StepFrame(seq, ack, sent))
    envelope = decode_envelope(frame)
    assert (envelope.seq, envelope.ack) == (seq, ack)
    assert decode_to_executor(bytes(envelope.messages)) == sent
    assert encode(Envelope(seq, ack, msgspec.Raw(encode(sent)))) == frame


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_protocol_error(data: bytes) -> None:
    _decode_all(data)


@given(mutated(frames.map(encode)))
def test_mutated_frames_raise_only_protocol_error(data: bytes) -> None:
    _decode_all(data)


@given(frames.map(encode), st.data())
def test_truncated_frames_are_refused(frame: bytes, data: st.DataObject) -> None:
    cut = frame[: data.draw(st.integers(0, len(frame) - 1))]
    for decode in DECODERS:
        with pytest.raises(ProtocolError):
            decode(cut)


LIARS = [
    b"\xdd\xff\xff\xff\xff",  # an array of 2**32 messages
    b"\x93\x01\x01\xdd\xff\xff\xff\xff",  # in a frame
    b"\x91\x93\x01\x01\xc6\xff\xff\xff\xff",  # a body of 4 GB
    b"\x91\x94\x02\x01\x01\xdd\x7f\xff\xff\xff",  # a Run of 2**31 slots
    b"\x91\x95\x03\x01\xdb\xff\xff\xff\xff",  # a dtype of 4 GB
    b"\x91\x95\x03\x01\xa7float32\xdd\xff\xff\xff\xff",  # a shape of 2**32 dimensions
    b"\x91\x95\x03\x01\xa7float32\xdf\xff\xff\xff\xff",  # a map of 2**32 entries
    b"\x91" * 1_000_000,  # nesting
    b"\x93\x01\x01" + b"\x91" * 1_000_000,
    b"\x93\x01\x01" + b"\x81\xa1a" * 300_000,
]


@pytest.mark.parametrize("data", LIARS, ids=lambda data: data[:12].hex())
def test_claimed_sizes_are_not_allocated(data: bytes) -> None:
    tracemalloc.start()
    try:
        _decode_all(data)
        _, peak_nbytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_nbytes < 256 << 10


def test_many_small_messages_are_refused_before_they_are_built() -> None:
    flood = (Free(()),) * (MAX_MESSAGES + 1)
    for decode, data in [(decode_to_executor, encode(flood)), (decode_step, encode(StepFrame(1, 0, flood)))]:
        with pytest.raises(ProtocolError, match="length <= 4096"):
            decode(data)


def test_frame_over_the_limit_is_refused_unread() -> None:
    for decode in DECODERS:
        with pytest.raises(ProtocolError, match="the limit is"):
            decode(b"\x90" + bytes(MAX_FRAME_NBYTES))


@pytest.mark.parametrize(
    "message",
    [
        Put(1, "float32\n", (1,), b""),
        Put(1, "Float32", (1,), b""),
        Put(1, "float32", (-1,), b""),
        Put(1, "float32", (1 << 49,), b""),
        Put(1, "float32", (1,) * 65, b""),
        Put(1, "float32", (1,), bytes((64 << 10) + 1)),
        Put(-1, "float32", (1,), b""),
    ],
)
def test_value_out_of_its_bounds_is_refused(message: Put) -> None:
    with pytest.raises(ProtocolError):
        decode_to_executor(encode((message,)))


def _decode_all(data: bytes) -> None:
    for decode in DECODERS:
        try:
            decode(data)
        except ProtocolError:
            continue
