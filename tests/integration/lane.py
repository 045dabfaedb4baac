"""A raw client's session on one executor, for tests of what executors do between themselves."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from front_process import Caller, opened, step

from remora.ir.graph import Template
from remora.ir.node import Hole, Items, Node, Slot
from remora.wire.messages import (
    Await,
    Barrier,
    Define,
    Done,
    Failed,
    Fetch,
    Grant,
    Lost,
    Memory,
    MemoryQuery,
    Payload,
    Peer,
    Push,
    Pushed,
    PushFailed,
    Put,
    Run,
    Site,
    Values,
)

ANSWER_S = 20.0
FULL = Template((Node("aten.full.default", (Items((Hole("int"),)), Hole("float"))),))
ADD = Template((Node("aten.add.Tensor", (Slot(0), Hole("int"))),))
ADD_IN_PLACE = Template((Node("aten.add_.Tensor", (Slot(0), Hole("int"))),))
MB = 1 << 18  # floats


class Lane:
    """One session: `send` numbers frames, `reply` waits for a message, replies that are not asked for are kept."""

    def __init__(self, caller: Caller, grant: Grant, socket: Any) -> None:
        self.caller, self.grant, self.socket = caller, grant, socket
        self.url = str(caller.http._base_url).rstrip("/")
        self.seq = 0
        self.read = 0
        self.tickets = 0
        self.segment_sites: dict[int, int] = {}
        self.templates = 0
        self.sites: dict[str, int] = {}  # of templates that a test uses often
        self.got: list[Any] = []

    async def send(self, *messages: Any) -> None:
        self.seq += 1
        await self.socket.send_bytes(step(self.seq, *messages, ack=self.read))

    def ticket(self) -> int:
        self.tickets += 1
        return self.tickets

    async def reply(self, wanted: Callable[[Any], bool], timeout_s: float = ANSWER_S) -> Any:
        """The first message that is `wanted`; a Failed or Lost that is not is an error."""
        async with asyncio.timeout(timeout_s):
            while True:
                for message in self.got:
                    if wanted(message):
                        self.got.remove(message)
                        return message
                    assert not isinstance(message, (Failed, Lost)), message
                frame = (await self.socket.receive()).data
                self.read, _, messages = opened(frame)
                self.got += messages

    async def answer(self, ticket: int, timeout_s: float = ANSWER_S) -> Any:
        return await self.reply(lambda message: getattr(message, "ticket", None) == ticket, timeout_s)

    async def failed(self) -> Any:
        return await self.reply(lambda message: isinstance(message, (Failed, Lost)))

    async def peer(self, index: int, other: Lane, url: str | None = None, ca: str = "") -> None:
        await self.send(Peer(index, url or other.url, other.grant.session, other.grant.push_secret, ca))

    async def push(self, index: int, *names: tuple[int, int, int], whole: bool = False) -> Any:
        """Pushes and returns the answer."""
        ticket = await self.start_push(index, *names, whole=whole)
        answer = await self.answer(ticket)
        assert isinstance(answer, (Pushed, PushFailed))
        return answer

    async def start_push(self, index: int, *names: tuple[int, int, int], whole: bool = False) -> int:
        ticket = self.ticket()
        await self.send(Push(ticket, index, tuple(n for name in names for n in name), whole))
        return ticket

    async def wait(self, *names: tuple[int, int, int], source: str = "a") -> None:
        await self.send(Await(tuple(n for name in names for n in name), source))

    async def abandon(self, *names: tuple[int, int, int], reason: str = "the source is gone") -> int:
        body = {"names": [n for name in names for n in name], "reason": reason}
        path = f"/v1/sessions/{self.grant.session}/abandon"
        headers = {"X-Remora-Secret": self.grant.push_secret}
        return (await self.caller.ask("POST", path, headers=headers, json=body))[0]

    async def fetch(self, *names: tuple[int, int, int], describe: bool = False) -> tuple[Payload, ...]:
        ticket = self.ticket()
        await self.send(Fetch(ticket, tuple(n for name in names for n in name), describe))
        answer = await self.answer(ticket)
        assert isinstance(answer, Values)
        return answer.values

    async def floats(self, name: tuple[int, int, int]) -> tuple[float, ...]:
        (payload,) = await self.fetch(name)
        return struct.unpack(f"<{payload.nbytes // 4}f", await self.bytes_of(payload))

    async def bytes_of(self, payload: Payload) -> bytes:
        if payload.bulk is None:
            return payload.data or b""
        status, _, body = await self.caller.ask("GET", f"/bulk/{payload.bulk}", self.grant)
        assert status == 200
        return body

    async def put(self, segment: int, *numbers: float) -> tuple[int, int, int]:
        await self.send(Put(segment, "float32", (len(numbers),), struct.pack(f"<{len(numbers)}f", *numbers)))
        return segment, 0, 0

    async def define(self, template: Template) -> int:
        """The site of a new template."""
        at = self.templates
        self.templates += 1
        await self.send(Define(at, template.body), Site(at, at))
        return at

    async def full(self, site: int, segment: int, n: int, value: float) -> tuple[int, int, int]:
        """`n` floats of one value; site: of FULL."""
        await self.send(Run(segment, site, holes=(0, n, 1, value), keep=(0, 0)))
        return segment, 0, 0

    async def add(self, site: int, segment: int, of: tuple[int, int, int]) -> tuple[int, int, int]:
        """Adds 1; site: of ADD or ADD_IN_PLACE."""
        await self.send(Run(segment, site, slots=(0, 0, *of), holes=(0, 1), keep=(0, 0)))
        return segment, 0, 0


@asynccontextmanager
async def lanes(*urls: str, tokens: tuple[str | None, ...] = (), authority: Path | None = None):
    """A session at each URL."""
    async with AsyncExitStack() as stack:
        made = []
        for url, token in zip(urls, tokens or (None,) * len(urls), strict=True):
            caller = await stack.enter_async_context(Caller(url, token, authority))
            grant = await caller.open(protocol=2)
            made.append(Lane(caller, grant, await caller.connect(grant, 1)))
        yield made
        for lane in made:
            await lane.caller.ask("DELETE", "", lane.grant)


def with_lanes(scenario, *executors):
    """Runs a scenario with a session on each executor."""

    async def run():
        async with lanes(*(executor.url for executor in executors)) as made:
            return await scenario(*made)

    return asyncio.run(run())


async def settled(lane: Lane) -> None:
    ticket = lane.ticket()
    await lane.send(Barrier(ticket))
    assert isinstance(await lane.answer(ticket), Done)


async def memory(lane: Lane) -> Memory:
    ticket = lane.ticket()
    await lane.send(MemoryQuery(ticket))
    return await lane.answer(ticket)
