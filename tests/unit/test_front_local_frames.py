"""What fronts of one host say to each other: where it is looked for, and what is no such thing."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading

import msgspec
import pytest

from remora.errors import ProtocolError
from remora.executor.front.local_frames import (
    Came,
    Conversation,
    Declined,
    Give,
    Hello,
    Proven,
    Still,
    ask,
    fits,
    same_user,
    socket_in,
)

NAME = "remora-front-12-abcdef_0"
HELLO = Hello(1, "s1", "0123456789abcdef")


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../x",
        f"../{NAME}",
        f"{NAME}/..",
        f"{NAME}/here",
        "/run/docker.sock",
        "remora-front-1-",
        "a",
        f"{NAME}\0",
    ],
)
def test_a_peer_names_nothing_but_an_executors_folder(tmp_path, name):
    with pytest.raises(ProtocolError, match="is not the name of an executor's folder"):
        socket_in(tmp_path, name)


def test_a_folder_is_this_hosts_and_this_users_or_it_is_not_looked_into(tmp_path):
    assert socket_in(tmp_path, NAME) is None
    folder = tmp_path / NAME
    folder.mkdir(mode=0o700)
    assert socket_in(tmp_path, NAME) == folder / "here"
    folder.chmod(0o750)
    assert socket_in(tmp_path, NAME) is None
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert socket_in(tmp_path, NAME) is None


@pytest.mark.skipif(os.getuid() != 0, reason="gives a folder to another user")
def test_another_users_folder_is_not_looked_into(tmp_path):
    (tmp_path / NAME).mkdir(mode=0o700)
    os.chown(tmp_path / NAME, 12345, 12345)
    assert socket_in(tmp_path, NAME) is None


def test_a_path_that_no_socket_can_have_is_known(tmp_path):
    assert fits(tmp_path / "a")
    assert not fits(tmp_path / ("a" * 108))


@pytest.fixture
def ends():
    asking, answering = socket.socketpair()
    asking.settimeout(5)
    answering.setblocking(False)
    with asking, answering:
        yield asking, answering


def conversed(answering: socket.socket, *answers):
    """What was asked, with the bytes of the file that came along."""

    async def run():
        conversation, heard = Conversation(answering), []
        for answer in answers:
            question = await asyncio.wait_for(conversation.question(), 5)
            came = os.pread(conversation.file, 100, 0) if conversation.file is not None else None
            conversation.drop_file()
            heard.append((question, came))
            for part in answer:
                conversation.answer(part)
        return heard

    return asyncio.run(run())


def test_questions_and_answers_take_turns(ends, tmp_path):
    (tmp_path / "body").write_bytes(b"some bytes")
    give = Give("secret", bytes(700_000), 10)
    got = []

    def client():
        assert same_user(ends[0])
        got.append(ask(ends[0], HELLO))
        with open(tmp_path / "body", "rb") as file:
            got.append(ask(ends[0], give, file.fileno()))
        got.append(ask(ends[0], Give("secret", b"", 3, b"abc")))

    asking = threading.Thread(target=client)
    asking.start()
    heard = conversed(ends[1], [Proven("p", "cuda")], [Still(), Still(), Came()], [Declined("no", True)])
    asking.join()
    assert got == [Proven("p", "cuda"), Came(), Declined("no", True)]
    assert heard == [(HELLO, None), (give, b"some bytes"), (Give("secret", b"", 3, b"abc"), None)]


def test_all_but_one_of_the_files_that_come_are_closed(ends):
    before = len(os.listdir("/proc/self/fd"))
    frame = msgspec.msgpack.encode(HELLO)
    with open("/dev/null") as file:
        socket.send_fds(ends[0], [struct.pack("<I", len(frame)) + frame], [file.fileno()] * 3)
    assert conversed(ends[1], [Came()])[0][0] == HELLO
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "said",
    [
        struct.pack("<I", 1 << 30),
        struct.pack("<I", 1) + b"\xc1",
        struct.pack("<I", 2) + msgspec.msgpack.encode([9]),
        struct.pack("<I", 4) + msgspec.msgpack.encode([0, 1, "s"]),
    ],
    ids=["too large", "no msgpack", "no question", "half of one"],
)
def test_what_is_no_question_is_an_error_and_takes_no_memory(ends, said):
    ends[0].sendall(said)
    with pytest.raises(ProtocolError):
        conversed(ends[1], [Came()])


def test_who_goes_away_is_not_waited_for(ends):
    ends[0].sendall(b"\1")
    ends[0].close()
    assert conversed(ends[1], []) == [(None, None)]


@pytest.mark.parametrize("answer", [struct.pack("<I", 1 << 30), struct.pack("<I", 1) + b"\xc1"])
def test_an_answer_is_bounded_and_checked_as_well(ends, answer):
    ends[1].sendall(answer)
    with pytest.raises(ProtocolError):
        ask(ends[0], HELLO)


def test_an_answer_that_does_not_come_is_an_error(ends):
    ends[0].settimeout(0.1)
    with pytest.raises(TimeoutError):
        ask(ends[0], HELLO)
    ends[1].close()
    with pytest.raises(OSError):
        ask(ends[0], HELLO)
