"""Shared memory that is used again."""

import os

import pytest

from remora.executor.buffers import Buffers

PAGE = os.sysconf("SC_PAGE_SIZE")


def files(folder):
    return sorted(str(path) for path in folder.iterdir())


def test_a_buffer_is_used_again_if_it_is_not_much_larger(tmp_path):
    buffers = Buffers(tmp_path, "x")
    assert buffers.take(1) is None
    buffer = buffers.create(64 * PAGE)
    buffer.view(3)[:] = b"abc"
    assert (tmp_path / buffer.path).read_bytes()[:3] == b"abc"
    assert os.stat(buffer.path).st_mode & 0o777 == 0o600
    buffers.give_back(buffer, now=0)
    assert buffers.take(65 * PAGE) is None
    assert buffers.take(32 * PAGE) is None
    assert buffers.take(60 * PAGE) is buffer
    assert buffers.take(60 * PAGE) is None


def test_spare_ones_go_after_a_while_and_dropped_ones_at_once(tmp_path):
    buffers = Buffers(tmp_path, "x")
    first, second, third = (buffers.create(PAGE) for _ in range(3))
    buffers.give_back(first, now=0)
    buffers.give_back(second, now=3)
    buffers.drop(third)
    buffers.drop_spare(before=2)
    assert files(tmp_path) == [second.path]
    assert buffers.spare_nbytes == PAGE


def test_spare_ones_are_bounded(tmp_path):
    buffers = Buffers(tmp_path, "x", 4 * PAGE)
    for _ in range(3):
        buffers.give_back(buffers.create(2 * PAGE), now=0)
    assert buffers.spare_nbytes == 4 * PAGE
    assert len(files(tmp_path)) == 2


def test_a_full_volume_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    def full(fd, offset, nbytes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Buffers(tmp_path, "x").create(PAGE)
    assert files(tmp_path) == []
