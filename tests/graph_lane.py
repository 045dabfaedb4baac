"""A worker's session with graphs beside one without, which are told the same and must answer the same.

The recorder is a stand-in that runs a stage's rows again where a graph would replay their kernels: it reads its
inputs where they lay when it was recorded, and writes its results over those of the last time.
"""

from __future__ import annotations

import torch

from remora.executor.hop import SessionTerms
from remora.executor.worker.session import WorkerSession
from remora.ir.graph import Template
from remora.ops.dtypes import bytes_of
from remora.wire.messages import Define, Failed, Fetch, Put, Run, Site, Values
from worker_endpoint import LIMIT_NBYTES, worker_device


class StandIn:
    kind = "cpu"

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def pool(self):
        return None

    def record(self, body, pool):
        self.recorded += 1
        outputs = body()
        for output in outputs:
            output.fill_(0)  # nothing is computed by a recording

        def replay():
            self.replayed += 1
            fresh = [tensor.clone() for tensor in body()]
            for output, tensor in zip(outputs, fresh, strict=True):
                output.copy_(tensor)

        return replay, outputs, 1000

    def strict(self, on):
        pass

    def give_back(self):
        pass


class Both:
    """Sessions that are told the same and must answer the same."""

    sessions: list[WorkerSession]
    templates = 0

    def tell(self, message):
        replies = [session.handle(message) for session in self.sessions]
        assert plain(replies[0]) == plain(replies[1]), replies
        return replies[0]

    def program(self, *nodes):
        self.tell(Define(self.templates, Template(nodes).body))
        self.tell(Site(self.templates, self.templates))
        self.templates += 1
        return self.templates - 1


class Lane(Both):
    """A session with graphs and one without: both are told the same."""

    def __init__(self, exact=True, kernels=None):
        self.recorder = StandIn()
        self.sessions = []
        for recorder in (self.recorder, None):
            device, sessions, _ = worker_device()
            device.recorder, device.kernels = recorder, kernels
            if self.sessions:
                device.generators = self.sessions[0].device.generators  # there is one default generator
            session = WorkerSession(1, SessionTerms("t/u", 0, LIMIT_NBYTES, exact), device)
            sessions.append(session)
            self.sessions.append(session)

    @property
    def graphed(self):
        return self.sessions[0]

    def put(self, segment, tensor):
        self.tell(Put(segment, "float32", tuple(tensor.shape), bytes(bytes_of(tensor))))

    def run(self, segment, site, slots, keep, wants=None, holes=(), frees=()):
        return self.tell(
            Run(
                segment,
                site,
                tuple(n for at, name in enumerate(slots) for n in (at, 0, *name)),
                tuple(n for pair in enumerate(holes) for n in pair),
                keep,
                frees,
                wants,
                segment if wants is not None else None,
            )
        )

    def same(self, *names):
        """The values are equal in both sessions."""
        for name in names:
            self.tell(Fetch(7, name))

    def near(self, *names):
        """The values are nearly equal in both sessions, with graphs that are not exact."""
        for name in names:
            made, expected = (session.look_up([name])[0] for session in self.sessions)
            torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def plain(reply):
    if isinstance(reply, Values):
        return [(v.dtype, v.shape, v.data) for v in reply.values]
    if isinstance(reply, Failed):
        return (reply.segment, reply.row, reply.kind, reply.op)
    return reply
