"""Whatever a client sends, well typed but senseless: the worker answers Failed, or nothing, and lives."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parents[1]))
from late_reading import LateReading
from remora.executor.hop import SessionTerms
from remora.executor.worker.memory import _data_nbytes
from remora.executor.worker.session import WorkerSession
from remora.ir.graph import Template
from remora.ir.node import Const, Hole, Items, Node, Ref, Slot, Symbol
from remora.wire.codec import decode_to_client, decode_to_executor, encode
from remora.wire.messages import (
    Adopt,
    Await,
    Barrier,
    Confirm,
    Define,
    DeviceFacts,
    DeviceQuery,
    Done,
    Early,
    Failed,
    Fetch,
    Flag,
    Free,
    LoadRng,
    Mark,
    Marked,
    Memory,
    MemoryQuery,
    Peer,
    Push,
    Put,
    Recover,
    Run,
    RunAhead,
    SaveRng,
    Seed,
    Site,
    Undone,
    Values,
)
from worker_endpoint import LIMIT_NBYTES, worker_device


@pytest.fixture(autouse=True, scope="module")
def limited():
    """As in a worker: an allocation beyond the limit fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_nbytes() + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


OPS = (
    "aten.add.Tensor", "aten.mul_.Tensor", "aten.empty.memory_format", "aten.ones.default", "aten.cat.default",
    "aten.view.default", "aten.expand.default", "aten.split.Tensor", "aten.max.dim", "aten.item.default",
    "aten.randn.default", "aten.as_strided.default", "aten.embedding.default", "aten.nonzero.default",
    "aten.from_file.default", "aten.data_ptr.default", "aten.no_such.op", "prim.device.default",
    "os.system.default", "aten.set_.source_Storage", "aten.resize_.default", "aten.clone.default",
)  # fmt: skip
small = st.integers(-2, 6)
sizes = st.one_of(small, st.sampled_from([1 << 20, 1 << 33, 1 << 47, (1 << 62) + 1]))
leaf = st.one_of(
    st.builds(Ref, st.integers(0, 4), st.integers(0, 2)),
    st.builds(Slot, st.integers(0, 2)),
    st.just(Hole("int")),
    st.just(Hole("float")),
    st.builds(Const, st.sampled_from([True, None, "mean", "/etc/passwd"])),
    st.builds(
        Symbol,
        st.sampled_from(["dtype", "device", "layout", "complex"]),
        st.sampled_from(["float32", "executor", "save", "1j"]),
    ),
)
args = st.one_of(leaf, st.builds(lambda items: Items(tuple(items)), st.lists(leaf, max_size=3)))
nodes = st.builds(
    Node,
    st.sampled_from(OPS),
    st.lists(args, max_size=4).map(tuple),
    st.lists(
        st.tuples(st.sampled_from(["dtype", "device", "dim", "out", "generator"]), args), max_size=2
    ).map(tuple),
    st.sampled_from([(), ((),), ((1, 0),)]),
)
bodies = st.one_of(
    st.lists(nodes, max_size=5).map(lambda rows: Template(tuple(rows)).body), st.binary(max_size=30)
)
segments = st.integers(0, 12)
REPLIES = (Values, Done, Failed, Memory, DeviceFacts, Marked, Early, Undone)


def groups_of(*parts):
    return st.lists(st.tuples(*parts), max_size=4).map(lambda rows: tuple(n for row in rows for n in row))


def maybe(strategy):
    return st.one_of(st.none(), strategy)


names = groups_of(segments, small, small)
names_from_zero = groups_of(segments, st.integers(0, 2), st.integers(0, 1))
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 1 << 20, 1 << 47]), max_size=3).map(tuple)
dtypes = st.sampled_from(["float32", "int64", "bool", "float9"])
messages = st.one_of(
    st.builds(Define, st.integers(0, 3), bodies),
    st.builds(Site, st.integers(0, 3), st.integers(0, 3)),
    st.builds(
        Run,
        segments,
        st.integers(0, 3),
        maybe(st.one_of(groups_of(small, st.integers(0, 1), segments, small, small), names)),
        maybe(groups_of(small, st.one_of(sizes, st.floats()))),
        maybe(groups_of(small, small)),
        maybe(groups_of(small, small, small)),
        maybe(groups_of(small, small)),
        maybe(st.integers(0, 5)),
    ),
    st.builds(Put, segments, dtypes, shapes, st.binary(max_size=64)),
    st.builds(Put, segments, st.just("float32"), st.just((2, 2)), st.just(bytes(16))),
    st.builds(Adopt, segments, st.just("float32"), st.just((4,)), st.just(bytes(32))),
    st.builds(Fetch, st.integers(0, 5), names, st.booleans()),
    st.builds(Free, names),
    st.builds(Seed, st.integers(-(1 << 63), (1 << 64) - 1), st.integers(0, 2)),
    st.builds(SaveRng, segments, st.integers(0, 2)),
    st.builds(LoadRng, st.integers(0, 2), st.tuples(segments, st.integers(0, 2), st.integers(0, 2))),
    st.builds(
        Flag,
        st.sampled_from(["_set_cudnn_enabled", "_set_sdp_priority_order", "set_flush_denormal", "system"]),
        st.lists(st.one_of(st.booleans(), st.integers(-9, 9), st.just("x")), max_size=3).map(tuple),
    ),
    st.builds(Recover, st.integers(0, 6)),
    st.builds(Barrier, st.integers(0, 5)),
    st.builds(MemoryQuery, st.integers(0, 5), st.booleans()),
    st.builds(DeviceQuery, st.integers(0, 5)),
    st.builds(Mark, st.integers(0, 5), st.booleans()),
    st.builds(Push, st.integers(0, 5), st.integers(0, 3), names_from_zero, st.booleans()),
    st.builds(Await, names_from_zero, st.just("a")),
    st.builds(Peer, st.integers(0, 3), st.just("http://10.0.0.1"), st.just("s"), st.just("p")),
)  # fmt: skip


@st.composite
def loops(draw):
    """Something that may be predicted: a few messages again and again, counted on, and then anything."""
    body = draw(st.lists(messages, min_size=1, max_size=3))
    said = [RunAhead(draw(st.integers(1, 64)))]
    for turn in range(draw(st.integers(3, 8))):
        for at, message in enumerate(body):
            shift = {
                name: getattr(message, name) + 20 * turn + at
                for name in ("segment", "ticket")
                if getattr(message, name, None) is not None
            }
            said.append(replace(message, **shift))
    return said + draw(st.lists(st.builds(Confirm, st.integers(1, 9), st.integers(0, 9)), max_size=2))


@given(
    st.lists(messages, max_size=8),
    st.one_of(st.lists(st.one_of(messages, st.builds(Confirm, st.integers(1, 9))), max_size=40), loops()),
    st.integers(0, 5),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_senseless_messages_are_refused_and_the_session_can_go_on(before, batch, ahead, late):
    device, sessions, _ = worker_device()
    if late:
        device.reading = lambda tensors, bounds: LateReading(tensors, bounds, lambda: False)
    session = WorkerSession(1, SessionTerms("t/u", 0, LIMIT_NBYTES), device)
    sessions.append(session)
    with torch.inference_mode():
        try:
            for message in decode_to_executor(encode(before + batch)):
                replies = list(session.take(message))
                for _ in range(ahead if session.ahead is not None else 0):
                    coming = session.ahead.coming()
                    replies += session.ahead.go(coming) if coming is not None else session.ahead.answers()
                for reply in replies:
                    assert reply is None or isinstance(reply, REPLIES)
                    if reply is not None:
                        decode_to_client(encode((reply,)))
                    if isinstance(reply, Failed):
                        assert reply.message
                assert session.values.used_nbytes <= LIMIT_NBYTES
            list(session.take(Recover(session.failures)))
            list(session.take(Put(1000, "float32", (2,), bytes(8))))
            *_, answer = session.take(Fetch(1, (1000, 0, 0)))
            if answer is None:
                *_, answer = session.ahead.answers()
            assert isinstance(answer, Values)
        finally:
            session.close()
