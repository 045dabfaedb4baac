"""What fronts of one host say to each other over a Unix socket: a question, its answer, and so on.

A frame is (nbytes u32, message); with a `Give` may come the descriptor of the file in which the body lies. The
socket lies in the listener's private folder, so who reaches it shares host, memory and user with the listener. The
folder's name comes from the peer over HTTP, and is looked for here, below this front's own base folder.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from remora.errors import ProtocolError
from remora.wire.limits import MAX_INLINE_NBYTES, MAX_PARCEL_HEADER_NBYTES
from remora.wire.messages import Inline, Meta, Nbytes, Text, Word

T = TypeVar("T")

VERSION = 1
SOCKET = "here"
MAX_HANDLE_NBYTES = 128  # of device memory; CUDA's has 64
STILL_S = 10.0  # how often who is at work says so
_HEADER = struct.Struct("<I")
_MAX_NBYTES = MAX_PARCEL_HEADER_NBYTES + MAX_INLINE_NBYTES + 4096
_MAX_DESCRIPTORS = 4  # that come with one read; all but the first are closed
_FOLDER = re.compile(r"remora-front-\d{1,10}-[A-Za-z0-9_]{1,32}")
_MAX_PATH_CHARS = 100  # of a Unix socket, everywhere
_PIECE_NBYTES = 1 << 18


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Asks for the proof that the push secret of a session is known."""

    version: int
    session: Word
    nonce: Annotated[str, Meta(min_length=16, max_length=64)]


class Give(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A parcel. Its body's `nbytes` are `data`, or device memory with this handle, or in the file that comes along."""

    secret: Word
    head: Annotated[bytes, Meta(max_length=MAX_PARCEL_HEADER_NBYTES)]
    nbytes: Nbytes
    data: Inline = b""
    handle: Annotated[bytes, Meta(max_length=MAX_HANDLE_NBYTES)] = b""


class Proven(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """device: the kind of device memory that can be opened here, such as `cuda`; empty: none."""

    proof: Word
    device: Word


class Came(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The session has the parcel's bytes."""


class Still(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """At work; an answer follows."""


class Declined(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Nothing was taken. elsewhere: another way may do."""

    message: Text
    elsewhere: bool


Question = Hello | Give
Answer = Proven | Came | Still | Declined
_encoder = msgspec.msgpack.Encoder()
_questions = msgspec.msgpack.Decoder(Question)
_answers = msgspec.msgpack.Decoder(Answer)


def socket_in(base: Path, folder: str) -> Path | None:
    """The socket of the front whose private folder has this name, if that is on this host and this user's.

    Raises:
        ProtocolError: it is no name of such a folder.
    """
    if not _FOLDER.fullmatch(folder):
        raise ProtocolError(f"{folder[:64]!r} is not the name of an executor's folder")
    with suppress(FileNotFoundError):
        about = os.lstat(base / folder)
        if about.st_uid == os.getuid() and not about.st_mode & 0o077:
            return base / folder / SOCKET
    return None


def fits(path: Path) -> bool:
    """Whether executors can meet at this path: the system passes descriptors on, and a Unix socket can have it."""
    able = hasattr(socket, "AF_UNIX") and hasattr(socket, "send_fds") and hasattr(os, "preadv")
    return able and len(os.fsencode(path)) <= _MAX_PATH_CHARS


def same_user(connection: socket.socket) -> bool:
    """Whether the other end belongs to this user; where the system does not say, the folder's permissions do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


# ---------------------------------------------------------------- the asking end: blocking


def ask(connection: socket.socket, question: Question, file: int | None = None) -> Answer:
    """Sends a question and waits for its answer. The socket's timeout is for every sign of life.

    Raises:
        OSError, ProtocolError: the other end is not there any more, or says what makes no sense.
    """
    body = _encoder.encode(question)
    frame = _HEADER.pack(len(body)) + body
    sent = socket.send_fds(connection, [frame], [file]) if file is not None else connection.send(frame)
    connection.sendall(memoryview(frame)[sent:])
    while True:
        (nbytes,) = _HEADER.unpack(_exactly(connection, _HEADER.size))
        answer: Answer = _decoded(_answers, _exactly(connection, _bounded(nbytes)))
        if not isinstance(answer, Still):
            return answer


def _exactly(connection: socket.socket, nbytes: int) -> bytes:
    parts = bytearray()
    while len(parts) < nbytes:
        part = connection.recv(nbytes - len(parts))
        if not part:
            raise ConnectionResetError("the other executor closed the connection")
        parts += part
    return bytes(parts)


# ---------------------------------------------------------------- the answering end: on an event loop


class Conversation:
    """One connection of a listener. `file`: what came with the last question; it is the caller's to close."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self.file: int | None = None

    async def question(self) -> Question | None:
        """The next one; None if the other end has gone. Raises ProtocolError, OSError."""
        while (frame := self._frame()) is None:
            await self._readable()
            try:
                data, files, _, _ = socket.recv_fds(
                    self._connection, _PIECE_NBYTES, _MAX_DESCRIPTORS, getattr(socket, "MSG_CMSG_CLOEXEC", 0)
                )
            except BlockingIOError:
                continue
            self._keep(files)
            if not data:
                return None
            self._buffer += data
        question: Question = _decoded(_questions, frame)
        return question

    def answer(self, answer: Answer) -> None:
        """Raises OSError: the other end reads nothing, or has gone."""
        body = _encoder.encode(answer)
        frame = _HEADER.pack(len(body)) + body
        if self._connection.send(frame) != len(frame):
            raise ConnectionAbortedError("the other end reads nothing")

    def drop_file(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None

    def _keep(self, files: Sequence[int]) -> None:
        for file in files:
            if self.file is None:
                self.file = file
            else:
                os.close(file)

    def _frame(self) -> bytes | None:
        if len(self._buffer) < _HEADER.size:
            return None
        end = _HEADER.size + _bounded(_HEADER.unpack_from(self._buffer)[0])
        if len(self._buffer) < end:
            return None
        frame = bytes(memoryview(self._buffer)[_HEADER.size : end])
        del self._buffer[:end]
        return frame

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._connection, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._connection)


def _bounded(nbytes: int) -> int:
    if nbytes > _MAX_NBYTES:
        raise ProtocolError(f"a frame of {nbytes} bytes; the limit is {_MAX_NBYTES}")
    return nbytes


def _decoded(decoder: msgspec.msgpack.Decoder[T], frame: bytes) -> T:
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed frame between executors: {error}") from None
