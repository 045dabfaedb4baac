"""A cache that grows in place, in a session: what the client hears, what goes to other executors, memory limits."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from remora.executor.hop import SessionTerms
from remora.executor.worker import append
from remora.executor.worker.packing import pack
from remora.executor.worker.recorded import Cache
from remora.executor.worker.session import WorkerSession
from remora.ir.graph import Template
from remora.ir.node import Hole, Items, Node, Ref, Slot
from remora.wire.messages import Define, Failed, Fetch, Free, MemoryQuery, Put, Run, Site
from worker_endpoint import worker_device

ROWS, ROW_NBYTES = 1000, 2 * 4 * 4
EXACT_NBYTES = (ROWS + 2) * ROW_NBYTES
LIMIT_NBYTES = 120_000
GROW = Node("aten.cat.default", (Items((Slot(0), Slot(1))), Hole("int")))
SCALE = Node("aten.mul_.Scalar", (Slot(0), Hole("int")))
VIEW = Node("aten.slice.Tensor", (Slot(0), Hole("int"), Hole("int"), Hole("int")))
TWICE = Node("aten.clone.default", (Ref(0),))
CACHE = (4, 0, 0)
EXPECTED = torch.cat([torch.arange(8.0 * ROWS).reshape(1, 2, ROWS, 4), torch.ones(1, 2, 2, 4)], 2)


@pytest.fixture
def session(monkeypatch):
    """Value (4, 0, 0) is a cache of 1002 rows with room behind it; (2, 0, 0) is a row."""
    monkeypatch.setattr(append, "LEAST_NBYTES", 64)
    monkeypatch.setattr(append, "_ROOM", 1)
    device, sessions, _ = worker_device(LIMIT_NBYTES)
    session = WorkerSession(1, SessionTerms("t/u", 0, LIMIT_NBYTES), device)
    sessions.append(session)
    with torch.inference_mode():
        for site, nodes in enumerate([(GROW,), (SCALE,), (VIEW, TWICE)]):
            say(session, Define(site, Template(nodes).body), Site(site, site))
        start = EXPECTED[:, :, :ROWS].contiguous()
        say(session, Put(1, "float32", tuple(start.shape), start.numpy().tobytes()))
        say(session, Put(2, "float32", (1, 2, 1, 4), torch.ones(8).numpy().tobytes()))
        say(session, grow(3, 1), Free((1, 0, 0)), grow(4, 3), Free((3, 0, 0)))
        assert session.values.loose == {CACHE}
        yield session
    session.close()


def say(session, *messages) -> None:
    for message in messages:
        assert session.handle(message) is None


def grow(segment: int, old: int) -> Run:
    return Run(segment, 0, (0, 0, old, 0, 0, 1, 0, 2, 0, 0), (0, 2), (0, 0))


def used_nbytes(session) -> int:
    return session.handle(MemoryQuery(7)).allocated_nbytes


def fetched(session, *names) -> list[torch.Tensor]:
    reply = session.handle(Fetch(9, tuple(number for name in names for number in name)))
    return [
        torch.frombuffer(bytearray(value.data), dtype=torch.float32).reshape(value.shape)
        for value in reply.values
    ]


def test_the_client_hears_of_an_exact_tensor(session):
    (payload,) = session.handle(Fetch(9, CACHE)).values
    assert payload.stride == EXPECTED.stride()
    assert payload.nbytes == EXACT_NBYTES
    (payload,) = session.handle(Fetch(9, CACHE, describe=True)).values
    assert payload.stride == EXPECTED.stride()
    (found,) = fetched(session, CACHE)
    assert torch.equal(found, EXPECTED)


@pytest.mark.parametrize("whole", [False, True])
def test_another_executor_gets_the_exact_bytes(session, whole):
    say(session, grow(5, 4))
    names = [CACHE, (5, 0, 0)]
    packed = pack("push", names, session.look_up(names), whole)
    assert packed.parcel.storages == (EXACT_NBYTES, EXACT_NBYTES + ROW_NBYTES)
    memory = torch.zeros(packed.parcel.body_nbytes, dtype=torch.uint8)
    packed.into(memory)
    assert memory[:EXACT_NBYTES].view(torch.float32).equal(EXPECTED.flatten())
    assert session.values.loose == set(names)


def test_a_write_is_seen_by_nobody_else(session):
    say(session, grow(5, 4), Run(6, 1, (0, 0, 4, 0, 0), (0, -1), ()))
    old, new = fetched(session, CACHE, (5, 0, 0))
    assert torch.equal(old, -EXPECTED)
    assert torch.equal(new, torch.cat([EXPECTED, torch.ones(1, 2, 1, 4)], 2))
    assert session.values.loose == {(5, 0, 0)}


def test_a_view_that_lives_on_is_of_an_exact_tensor(session):
    view = Run(6, 2, (0, 0, 4, 0, 0), (0, 2, 1, 0, 2, 5), (0, 0))
    say(session, view)
    tensors = session.values.tensors
    assert tensors[6, 0, 0].data_ptr() == tensors[CACHE].data_ptr()
    assert tensors[6, 0, 0].stride() == EXPECTED[:, :, :5].stride()
    assert tensors[CACHE].untyped_storage().nbytes() == EXACT_NBYTES


def test_a_copying_reader_leaves_the_cache_in_its_buffer(session):
    say(session, Run(6, 2, (0, 0, 4, 0, 0), (0, 2, 1, 0, 2, 5), (1, 0)))
    assert session.values.loose == {CACHE}
    (found,) = fetched(session, (6, 1, 0))
    assert torch.equal(found, EXPECTED[:, :, :5])


def test_room_to_spare_counts_until_memory_is_short(session):
    assert EXACT_NBYTES + ROW_NBYTES < used_nbytes(session) < 1.1 * EXACT_NBYTES
    rest_nbytes = LIMIT_NBYTES - EXACT_NBYTES - ROW_NBYTES
    say(session, Put(5, "float32", (rest_nbytes // 4,), bytes(rest_nbytes)))
    assert used_nbytes(session) == LIMIT_NBYTES
    (found,) = fetched(session, CACHE)
    assert torch.equal(found, EXPECTED)
    reply = session.handle(Put(6, "float32", (1,), bytes(4)))
    assert isinstance(reply, Failed)
    assert reply.kind == "memory"


def test_what_a_program_makes_takes_room_to_spare_too(session):
    rest_nbytes = LIMIT_NBYTES - used_nbytes(session) - 16
    say(session, Put(5, "float32", (rest_nbytes // 4,), bytes(rest_nbytes)))
    assert session.values.loose == {CACHE}
    say(session, Run(6, 2, (0, 0, 4, 0, 0), (0, 2, 1, 0, 2, 1), (1, 0)))
    assert not session.values.loose
    assert used_nbytes(session) == EXACT_NBYTES + ROW_NBYTES + rest_nbytes + ROW_NBYTES


def test_growth_fails_where_it_would_fail_without_a_buffer(session):
    steps = 100
    rest_nbytes = LIMIT_NBYTES - ROW_NBYTES - (2 * EXACT_NBYTES + (2 * steps - 1) * ROW_NBYTES)
    say(session, Put(5, "float32", (rest_nbytes // 4,), bytes(rest_nbytes)))
    for segment in range(6, 6 + steps):
        old = (segment - 1 if segment > 6 else 4, 0, 0)
        say(session, grow(segment, old[0]), Free(old))
    (found,) = fetched(session, (segment, 0, 0))
    assert torch.equal(found[:, :, : ROWS + 2], EXPECTED)
    assert found.shape[2] == ROWS + 2 + steps
    reply = None
    while reply is None:  # 2 * rows, and one, do not fit
        segment += 1
        reply = session.handle(grow(segment, segment - 1))
    assert isinstance(reply, Failed)
    assert (reply.kind, reply.op) == ("memory", GROW.op)


def test_an_empty_past_is_not_made_longer_in_a_graph():
    """Nothing tells how large a row of its memory is."""
    one = SimpleNamespace(past=0, grown=1, grow=SimpleNamespace(reserve=None))
    cache = Cache(one, (torch.float32, (1, 2, 1, 4), (8, 4, 4, 1)), 2)
    assert cache.fits(torch.zeros(1, 2, 3, 4))
    assert not cache.fits(torch.zeros(1, 2, 0, 4))
    assert not cache.fits(torch.zeros(1, 3, 3, 4))
