"""A worker's side of values between executors, without front or socket: what it hands over and what it takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from remora.errors import ProtocolError
from remora.executor.buffers import Buffers
from remora.executor.hop import Arrival, Kind, Outgoing, SessionTerms, Taken
from remora.executor.worker.failure import MemoryLimit
from remora.executor.worker.outbox import Outbox
from remora.executor.worker.session import WorkerSession
from remora.wire.messages import Abandon, Await, Failed, Free, Peer, Push, Put, Recover
from worker_endpoint import LIMIT_NBYTES, worker_device

NAME, LARGE = (1, 0, 0), (2, 0, 0)
LARGE_NBYTES = 1 << 20


class End:
    """A session and the packets that its worker sent to the front."""

    def __init__(self, folder: Path, limit_nbytes: int = LIMIT_NBYTES) -> None:
        self.device, sessions, _ = worker_device(limit_nbytes)
        self.packets: list[tuple[Kind, int, object]] = []
        tell = lambda *packet: self.packets.append(packet)  # noqa: E731
        self.device.outbox = Outbox(Buffers(folder, "push"), limit_nbytes, tell)
        self.session = WorkerSession(7, SessionTerms("t/u", 0, limit_nbytes), self.device)
        sessions.append(self.session)

    def handle(self, *messages):
        with torch.inference_mode():
            return [reply for message in messages if (reply := self.session.handle(message)) is not None]

    def push(self, *names, whole=False) -> Outgoing:
        self.handle(Push(1, 0, tuple(n for name in names for n in name), whole))
        kind, number, out = self.packets.pop()
        assert (kind, number, type(out)) == (Kind.PUSH, 7, Outgoing)
        return out

    def arrive(self, out: Outgoing, folder: Path) -> None:
        """As a front does, with every storage above 64 KiB in a file of its own."""
        data, path = out.data, ""
        if out.path:
            path = str(folder / f"arrival-{len(self.packets)}")
            Path(path).write_bytes(Path(out.path).read_bytes()[: out.nbytes])
        with torch.inference_mode():
            self.session.transfers.arrive(Arrival(out.head, (path,), data))

    def tensor(self, name) -> torch.Tensor:
        return self.session.values.tensors[name]


@pytest.fixture
def ends(tmp_path):
    made = End(tmp_path), End(tmp_path)
    made[0].handle(Put(1, "float32", (2,), bytes(8)))
    made[0].session.values.keep(LARGE, torch.ones(LARGE_NBYTES // 4))
    return made


def test_a_small_value_goes_in_the_packet_and_may_grow_there(ends, tmp_path):
    a, b = ends
    out = a.push(NAME)
    assert (out.path, out.failed, out.ticket, out.names) == ("", "", 1, NAME)
    assert a.device.outbox.nbytes == 0
    b.handle(Await(NAME, "a"))
    b.arrive(out, tmp_path)
    assert b.packets == []
    assert b.tensor(NAME).untyped_storage().resizable()
    assert b.session.values.used_nbytes == 8


def test_a_large_value_is_the_front_s_memory_until_it_ends(ends, tmp_path):
    a, b = ends
    out = a.push(LARGE)
    assert a.device.outbox.nbytes == LARGE_NBYTES
    b.arrive(out, tmp_path)
    assert b.packets == [(Kind.TAKEN, 7, Taken(out.push))]
    b.handle(Await(LARGE, "a"))  # it came early
    a.device.outbox.sent(out.push, reusable=True)
    assert (a.device.outbox.nbytes, a.device.outbox.buffers.spare_nbytes) == (0, LARGE_NBYTES)
    assert b.tensor(LARGE).sum() == LARGE_NBYTES // 4
    assert b.session.values.used_nbytes == LARGE_NBYTES
    assert b.device.returned == []
    b.handle(Free(LARGE))
    assert [Path(path).name for path in b.device.returned] == ["arrival-0"]


def test_a_device_with_memory_of_its_own_copies_what_came(tmp_path):
    end = End(tmp_path)
    end.device.device = torch.device("meta")
    path = tmp_path / "arrival"
    path.write_bytes(bytes(LARGE_NBYTES))
    path.chmod(0o400)
    tensor = end.device.adopt(str(path), LARGE_NBYTES)
    assert (tensor.device.type, tensor.nbytes) == ("meta", LARGE_NBYTES)
    assert end.device.returned == [str(path)]


def test_the_buffer_of_a_push_that_was_cut_is_not_used_again(ends):
    a, _ = ends
    out = a.push(LARGE)
    a.device.outbox.sent(out.push, reusable=False)
    assert a.device.outbox.buffers.spare_nbytes == 0
    assert not Path(out.path).exists()


def test_what_is_on_its_way_is_bounded(tmp_path):
    end = End(tmp_path, limit_nbytes=3 * LARGE_NBYTES // 2)
    end.session.values.keep(LARGE, torch.ones(LARGE_NBYTES // 4))
    first = end.push(LARGE)
    assert first.failed == ""
    assert "1,048,576 are on their way to other executors" in end.push(LARGE).failed
    end.device.outbox.sent(first.push, reusable=True)
    assert end.push(LARGE).failed == ""


def test_what_cannot_be_sent_says_why_and_fails_nothing_else(ends):
    a, _ = ends
    assert (
        a.push((9, 9, 9)).failed
        == "value (9, 9, 9) does not exist in this session (it was freed, or never made)"
    )
    a.session.values.keep((5, 0, 0), torch.zeros(2, dtype=torch.uint8).view(torch.float8_e8m0fnu))
    assert "torch.strided of torch.float8_e8m0fnu, cannot be sent" in a.push((5, 0, 0)).failed
    assert a.session.failed is None
    a.handle(Peer(3, "http://10.0.0.1", "s", "p"))
    assert a.packets.pop()[0] is Kind.PEER


def test_an_arrival_is_admitted_like_any_value(ends, tmp_path):
    a, _ = ends
    small = End(tmp_path, limit_nbytes=LARGE_NBYTES // 2)
    small.handle(Await(LARGE, "a"))
    assert small.session.transfers.waiting.held
    with pytest.raises(MemoryLimit):
        small.arrive(a.push(LARGE), tmp_path)
    assert not small.session.transfers.waiting.held
    assert "from executor a, and did not: the executor is out of memory" in small.session.story(LARGE)
    assert len(small.device.returned) == 1
    assert small.packets[-1][0] is Kind.TAKEN


def test_a_name_that_exists_keeps_its_value(ends, tmp_path):
    a, b = ends
    b.handle(Put(1, "float32", (1,), b"\0\0\x80\x3f"))
    b.arrive(a.push(NAME), tmp_path)
    assert b.tensor(NAME).tolist() == [1.0]
    (failed,) = b.handle(Await(NAME, "a"))
    assert "exists already" in failed.message
    assert b.tensor(NAME).tolist() == [1.0]
    with pytest.raises(ProtocolError, match="exists already"):  # a second time
        b.arrive(a.push(NAME), tmp_path)


def test_a_value_that_was_abandoned_is_dropped_when_it_comes(ends, tmp_path):
    a, b = ends
    b.session.transfers.abandon(Abandon(LARGE, "too late"))
    b.arrive(a.push(LARGE), tmp_path)
    assert LARGE not in b.session.values.tensors
    assert len(b.device.returned) == 1


def test_after_a_failure_a_stream_still_waits(ends, tmp_path):
    """Else what comes after the Recover could run before the value is there."""
    a, b = ends
    (failed,) = b.handle(Put(3, "float9", (1,), bytes(4)))
    assert isinstance(failed, Failed)
    b.handle(Await(NAME, "a"))
    assert b.session.transfers.waiting.held
    b.arrive(a.push(NAME), tmp_path)
    assert not b.session.transfers.waiting.held
    b.handle(Recover(failed.failure))
    assert b.tensor(NAME).tolist() == [0.0, 0.0]
