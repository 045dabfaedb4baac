"""One session on the worker: what each message does, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from remora.executor.hop import BlobFile, SessionTerms
from remora.executor.worker.session import WorkerSession
from remora.ir.graph import Template
from remora.ir.node import Const, Hole, Items, Node, Ref, Slot
from remora.wire.messages import (
    Adopt,
    Define,
    Failed,
    Fetch,
    Free,
    LoadRng,
    Put,
    Recover,
    Run,
    SaveRng,
    Seed,
    Site,
    Values,
)
from worker_endpoint import LIMIT_NBYTES, worker_session

ONE = b"\0\0\x80\x3f"
MIB = 1 << 20


@pytest.fixture
def session():
    with worker_session() as session:
        yield session


def program(session, *nodes):
    index = len(session.templates)
    assert session.handle(Define(index, Template(nodes).body)) is None
    assert session.handle(Site(len(session.sites), index)) is None
    return len(session.sites) - 1


def read(session, *name):
    reply = session.handle(Fetch(9, name))
    return torch.frombuffer(bytearray(reply.values[0].data), dtype=torch.float32).tolist()


def failed(reply, *parts, kind=None):
    assert isinstance(reply, Failed), reply
    for part in parts:
        assert part in reply.message
    assert kind in (None, reply.kind)
    return reply


def add_one(session):
    return program(session, Node("aten.add.Tensor", (Slot(0), Slot(0))))


def test_a_run_keeps_what_it_is_told_to_keep(session):
    site = add_one(session)
    session.handle(Put(1, "float32", (1,), ONE))
    assert session.handle(Run(2, site, (0, 1, 1, 0, 0), keep=(0, 0))) is None
    assert read(session, 2, 0, 0) == [2]
    reply = session.handle(Run(3, site, wants=(0, 0), ticket=4))
    assert isinstance(reply, Values)
    assert reply.ticket == 4


def test_a_name_is_made_once(session):
    site = add_one(session)
    session.handle(Put(1, "float32", (1,), ONE))
    failed(session.handle(Put(1, "float32", (1,), ONE)), "exists already", kind="protocol")
    session.handle(Recover(1))
    session.handle(Run(2, site, (0, 1, 1, 0, 0), keep=(0, 0)))
    failed(session.handle(Run(2, site)), "runs once", kind="protocol")
    session.handle(Recover(2))
    assert read(session, 2, 0, 0) == [2]


@pytest.mark.parametrize(
    ("put", "says"),
    [
        (Put(1, "float32", (2,), ONE), "which needs 8"),
        (Put(1, "float8", (1,), ONE), "no dtype"),
        (Put(1, "float32", (1 << 40, 1 << 40), ONE), "which needs"),
        (Adopt(1, "float32", (1,), bytes(32)), "neither sent nor proven"),
    ],
)
def test_uploads_that_make_no_sense(session, put, says):
    failed(session.handle(put), says, kind="protocol")
    assert session.values.used_nbytes == 0


def test_templates_and_sites_come_in_order(session):
    body = Template((Node("aten.add.Tensor", (Slot(0), Slot(0))),)).body
    for message, says in [
        (Define(3, body), "defined after 0"),
        (Define(0, b"junk"), "not a template"),
        (Site(0, 0), "out of order"),
        (Run(1, 7), "does not exist"),
    ]:
        failed(session.handle(message), says, kind="protocol")
        session.handle(Recover(session.failures))


@pytest.mark.parametrize(
    "op", ["aten.from_file.default", "aten._print.default", "prim.device.default", "os.system.default"]
)
def test_an_op_off_the_list_is_refused_by_name(session, op):
    site = program(session, Node(op, (Slot(0),)))
    session.handle(Put(1, "float32", (1,), ONE))
    reply = failed(session.handle(Run(2, site, (0, 1, 1, 0, 0))), op, kind="unsupported")
    assert reply.op == op


def test_a_failing_row_leaves_the_rows_before_it(session):
    site = program(
        session,
        Node("aten.add.Tensor", (Slot(0), Slot(0))),
        Node("aten.mul_.Tensor", (Ref(0), Ref(0))),
        Node("aten.cat.default", (Items((Ref(0), Slot(1))), Hole("int"))),
        Node("aten.mul_.Tensor", (Slot(0), Ref(0))),
        Node("aten.add.Tensor", (Ref(2), Ref(2))),
    )
    session.handle(Put(1, "float32", (1,), ONE))
    session.handle(Put(2, "float32", (1, 1), ONE))
    run = Run(3, site, (0, 1, 2, 0, 0, 1, 1, 1, 0, 0), (0, 0), (0, 0, 2, 0, 4, 0))
    reply = failed(session.handle(run))
    assert (reply.row, reply.op, reply.segment) == (2, "aten.cat.default", 3)
    assert reply.shapes == "[float32[1], float32[1, 1]]"
    session.handle(Recover(reply.failure))
    assert read(session, 3, 0, 0) == [4]
    assert read(session, 1, 0, 0) == [1]  # the write behind the failure did not happen
    failed(session.handle(Fetch(1, (3, 4, 0))), "never computed", "aten.cat.default")


def test_until_the_client_recovers_nothing_runs_but_frees_do(session):
    site = add_one(session)
    session.handle(Put(1, "float32", (1,), ONE))
    failure = failed(session.handle(Fetch(1, (5, 0, 0)))).failure
    assert session.handle(Run(6, site, (0, 1, 5, 0, 0), keep=(0, 0))) is None
    assert session.handle(Fetch(1, (1, 0, 0))) is None
    session.handle(Free((1, 0, 0)))
    assert session.values.used_nbytes == 0
    session.handle(Recover(failure + 1))  # another's
    assert session.failed is not None
    session.handle(Recover(failure))
    assert session.failed is None
    failed(session.handle(Fetch(1, (6, 0, 0))), "never computed")


def test_a_value_that_does_not_fit_is_not_kept_and_those_before_it_are(session):
    site = program(
        session,
        Node("aten.ones.default", (Items((Hole("int"),)),)),
        Node("aten.ones.default", (Items((Hole("int"),)),)),
    )
    run = Run(1, site, None, (0, MIB, 1, LIMIT_NBYTES // 4), (0, 0, 1, 0))
    reply = failed(session.handle(run), f"asked for {LIMIT_NBYTES:,} bytes", "Held by: t/u", kind="memory")
    assert reply.row == 1
    assert session.values.used_nbytes == 4 * MIB
    session.handle(Recover(reply.failure))
    session.handle(Free((1, 0, 0)))
    assert session.values.used_nbytes == 0


def test_a_blob_is_the_sessions_own_copy_and_is_let_go_with_its_last_value(session, tmp_path):
    released = []
    session.device.release = lambda number, digest, times: released.append(times)
    path, digest = tmp_path / "blob", bytes(range(32))
    path.write_bytes(ONE * 4)
    session.allow_blob(BlobFile(digest, str(path), 16, 1))
    session.handle(Adopt(1, "float32", (4,), digest))
    session.handle(Adopt(2, "float32", (2, 2), digest))
    site = program(session, Node("aten.add_.Tensor", (Slot(0), Slot(0))))
    session.handle(Run(3, site, (0, 0, 1, 0, 0)))
    assert (read(session, 1, 0, 0), read(session, 2, 0, 0)) == ([2] * 4, [1] * 4)
    assert path.read_bytes() == ONE * 4
    assert session.values.used_nbytes == 0  # the front counts the file
    session.handle(Free((1, 0, 0)))
    assert released == []
    session.allow_blob(BlobFile(digest, str(path), 16, 2))  # offered again, and not yet taken
    session.handle(Free((2, 0, 0)))
    assert released == []
    session.handle(Adopt(4, "float32", (4,), digest))
    session.handle(Free((4, 0, 0)))
    assert released == [2]
    failed(session.handle(Adopt(5, "float32", (4,), digest)), "neither sent nor proven")


def test_unset_memory_is_never_another_sessions(session):
    site = program(session, Node("aten.empty.memory_format", (Items((Hole("int"),)),)))
    session.handle(Run(1, site, None, (0, 1000), (0, 0)))
    assert read(session, 1, 0, 0) == [0] * 1000


def test_what_sites_remember_is_bounded(session, monkeypatch):
    monkeypatch.setattr("remora.executor.worker.session.MAX_BOUND", 3)
    session.handle(Put(1, "float32", (1,), ONE))
    sites = [add_one(session) for _ in range(4)]
    runs = [session.handle(Run(2 + n, site, (0, 0, 1, 0, 0))) for n, site in enumerate(sites)]
    assert runs[:3] == [None] * 3
    failed(runs[3], "bind more than 3", kind="memory")


def drawing(session, generator):
    node = Node("aten.rand.generator", (Items((Hole("int"),)),), (("generator", generator),))
    return program(session, node)


def test_a_generator_is_the_sessions_own(session):
    other = WorkerSession(2, SessionTerms("t/u", 0, LIMIT_NBYTES), session.device)
    for each in (session, other):
        each.handle(Seed(7, 3))
        each.handle(Run(1, drawing(each, Hole("int")), None, (0, 4, 1, 3), (0, 0)))
    expected = torch.rand(4, generator=torch.Generator().manual_seed(7)).tolist()
    assert read(session, 1, 0, 0) == read(other, 1, 0, 0) == expected
    failed(session.handle(SaveRng(2, 4)), "no generator 4", kind="protocol")
    other.close()


def test_a_generator_goes_back_to_a_saved_state(session):
    session.handle(Seed(7, 3))
    site = drawing(session, Hole("int"))
    session.handle(SaveRng(1, 3))
    session.handle(Run(2, site, None, (0, 4, 1, 3), (0, 0)))
    session.handle(LoadRng(5, (1, 0, 0)))
    session.handle(Run(3, site, None, (1, 5), (0, 0)))
    assert read(session, 2, 0, 0) == read(session, 3, 0, 0)
    failed(session.handle(LoadRng(5, (2, 0, 0))), "RNG state")


@pytest.mark.parametrize(
    ("generator", "says"),
    [(Hole("int"), "no generator 9"), (Hole("float"), "its number"), (Const("cpu"), "generator")],
)
def test_what_is_no_generator_is_refused(session, generator, says):
    site = drawing(session, generator)
    number = 9.0 if generator == Hole("float") else 9
    holes = (0, 4) if isinstance(generator, Const) else (0, 4, 1, number)
    failed(session.handle(Run(1, site, None, holes, (0, 0))), says)
