"""What a worker lends of its device's memory: how much, for how long, and when it is used again."""

from __future__ import annotations

import pytest
import torch

from remora.executor.buffers import Buffers
from remora.executor.hop import Kind, Outgoing
from remora.executor.worker.exports import DOUBT_S, MAX_SPARE_NBYTES, CannotExport, Export, Exports
from remora.executor.worker.outbox import Outbox

MB = 1 << 20


class CountedMemory:
    kind = "counted"

    def __init__(self) -> None:
        self.made: list[int] = []
        self.freed: list[bytes] = []
        self.settled = 0
        self.fault: CannotExport | None = None
        self.others: dict[bytes, torch.Tensor] = {}

    def make(self, nbytes):
        if self.fault is not None:
            raise self.fault
        self.made.append(nbytes)
        return Export(torch.empty(nbytes, dtype=torch.uint8), b"%d" % len(self.made))

    def settle(self):
        self.settled += 1

    def free(self, export):
        assert export.tensor.numel() == 0  # nothing looks at it any more
        self.freed.append(export.handle)

    def read(self, handle, targets):
        for at, target in targets:
            target.copy_(self.others[handle][at : at + target.numel()])


@pytest.fixture
def memory():
    return CountedMemory()


@pytest.fixture
def exports(memory):
    return Exports(memory, 512 * MB, lambda: 1 << 40)


def test_it_is_written_and_settled_before_the_handle_is_given(exports, memory):
    handle = exports.lend("a", MB, lambda tensor: tensor.fill_(7))
    assert (handle, memory.settled) == (b"1", 1)
    assert set(exports.lent("a").tolist()) == {7}
    assert (exports.lent_nbytes, exports.spare_nbytes) == (MB, 0)


def test_it_is_lent_again_once_nobody_reads_it(exports, memory):
    assert exports.lend("a", 4 * MB, torch.Tensor.zero_) == b"1"
    assert exports.lend("b", 4 * MB, torch.Tensor.zero_) == b"2"
    exports.over("a", reusable=True)
    assert exports.lend("c", 3 * MB, torch.Tensor.zero_) == b"1"
    exports.over("b", reusable=True)
    assert exports.lend("d", 5 * MB, torch.Tensor.zero_) == b"3"
    exports.over("nobody", reusable=True)
    assert (exports.lent_nbytes, exports.spare_nbytes, memory.freed) == (9 * MB, 4 * MB, [])


def test_what_somebody_may_still_read_is_neither_lent_again_nor_freed_at_once(exports, memory):
    exports.lend("a", 4 * MB, torch.Tensor.zero_)
    exports.over("a", reusable=False)
    exports.drop_spare()
    assert exports.lend("b", 4 * MB, torch.Tensor.zero_) == b"2"
    assert (exports.doubtful_nbytes, exports.spare_nbytes, memory.freed) == (4 * MB, 0, [])
    exports._doubtful[0].spare_since -= DOUBT_S + 1
    exports.drop_spare(before=0.0)
    assert (exports.doubtful_nbytes, memory.freed) == (0, [b"1"])


def test_what_is_spare_is_bounded_and_ends(exports, memory):
    exports.lend("a", MAX_SPARE_NBYTES, torch.Tensor.zero_)
    exports.lend("b", MB, torch.Tensor.zero_)
    exports.over("a", reusable=True)
    exports.over("b", reusable=True)
    assert memory.freed == [b"2"]
    exports.drop_spare(before=0.0)
    assert exports.spare_nbytes == MAX_SPARE_NBYTES
    exports.drop_spare()
    assert (exports.spare_nbytes, memory.freed) == (0, [b"2", b"1"])


def test_what_is_spare_makes_room_and_then_it_is_refused_for_now(memory):
    exports = Exports(memory, 10 * MB, lambda: 1 << 40)
    exports.lend("a", 2 * MB, torch.Tensor.zero_)
    exports.over("a", reusable=True)
    exports.lend("b", 9 * MB, torch.Tensor.zero_)
    assert memory.freed == [b"1"]
    with pytest.raises(CannotExport, match="2,097,152 bytes of the device's memory were not free") as caught:
        exports.lend("c", 2 * MB, torch.Tensor.zero_)
    assert not caught.value.lasting
    exports.over("b", reusable=True)
    assert exports.lend("c", 2 * MB, torch.Tensor.zero_) == b"3"


def test_the_values_room_comes_first(memory):
    exports = Exports(memory, 100 * MB, lambda: MB)
    with pytest.raises(CannotExport):
        exports.lend("a", 2 * MB, torch.Tensor.zero_)
    assert memory.made == []


def test_little_is_kept_where_little_room_is_left(memory):
    exports = Exports(memory, 512 * MB, lambda: 16 * MB)
    for push, nbytes in (("a", 2 * MB), ("b", 3 * MB)):
        exports.lend(push, nbytes, torch.Tensor.zero_)
    exports.over("b", reusable=True)
    assert (exports.spare_nbytes, memory.freed) == (0, [b"2"])
    exports.over("a", reusable=True)
    assert (exports.spare_nbytes, memory.freed) == (2 * MB, [b"2"])


def test_a_lasting_failure_is_remembered(exports, memory):
    memory.fault = CannotExport("not in this container", lasting=True)
    for _ in range(2):
        with pytest.raises(CannotExport, match="not in this container"):
            exports.lend("a", MB, torch.Tensor.zero_)
        memory.fault = None
    assert memory.made == []


def test_what_fails_to_be_written_is_not_kept(exports, memory):
    with pytest.raises(ZeroDivisionError):
        exports.lend("a", MB, lambda tensor: 1 / 0)
    assert (exports.lent_nbytes, memory.freed) == (0, [b"1"])


def test_a_process_reads_its_own_without_opening_it(exports, memory):
    handle = exports.lend("a", MB, lambda tensor: tensor.copy_(torch.arange(MB).to(torch.uint8)))
    target = torch.empty(10, dtype=torch.uint8)
    exports.read(handle, [(250, target)])
    assert target.tolist() == [250, 251, 252, 253, 254, 255, 0, 1, 2, 3]
    memory.others[b"x"] = torch.arange(20, dtype=torch.uint8)
    exports.read(b"x", [(5, target)])
    assert target.tolist() == list(range(5, 15))


# ---------------------------------------------------------------- with the outbox


@pytest.fixture
def outbox(tmp_path, exports):
    told = []
    made = Outbox(Buffers(tmp_path, "push"), 16 * MB, lambda *packet: told.append(packet), exports)
    made.told = told
    return made


def test_what_was_not_opened_is_handed_over_as_a_file(outbox, exports, memory):
    out = outbox.lend(7, Outgoing("a", 1, 0, (1, 0, 0), b"head", MB), lambda tensor: tensor.fill_(3))
    assert (out.handle, out.path, outbox.device_nbytes, outbox.nbytes) == (b"1", "", MB, 0)
    outbox.spill("a", reusable=False)
    ((kind, session, again),) = outbox.told
    assert (kind, session, again.again, again.handle, again.ticket) == (Kind.PUSH, 7, True, b"", 1)
    with open(again.path, "rb") as file:
        assert file.read() == b"\3" * MB
    assert (outbox.device_nbytes, exports.doubtful_nbytes, outbox.nbytes) == (MB, MB, MB)
    outbox.sent("a", reusable=True)
    assert outbox.nbytes == 0


def test_what_cannot_be_handed_over_again_says_why(outbox, exports):
    outbox.lend(7, Outgoing("a", 1, 0, (1, 0, 0), b"head", 17 * MB), torch.Tensor.zero_)
    outbox.spill("a", reusable=True)
    outbox.spill("unknown", reusable=True)
    first, second = (packet[2] for packet in outbox.told)
    assert "asked for 17,825,792 bytes to send" in first.failed
    assert (second.push, second.failed) == ("unknown", "the worker that had the values has ended")
    assert (exports.lent_nbytes, exports.spare_nbytes) == (0, 17 * MB)


def test_a_push_that_is_over_gives_its_memory_back(outbox, exports):
    outbox.lend(7, Outgoing("a", 1, 0, (1, 0, 0), b"head", MB), torch.Tensor.zero_)
    outbox.sent("a", reusable=True)
    assert (exports.lent_nbytes, outbox.kept_nbytes) == (0, MB)
    exports._spare[0].spare_since -= 60
    assert not outbox.drop_spare()
    assert outbox.kept_nbytes == 0
