"""Which worker serves which tenant: one process each, started when it is needed, replaced when it dies.

A process never serves two tenants. One more is kept warm while a tenant may still come that has none, since a
start takes seconds; so with one tenant there is one worker. When there are as many as there may be, a tenant
without sessions gives its worker up to one that comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from remora.executor.front.arrivals import Arrivals
from remora.executor.front.refusal import Refuse
from remora.executor.front.worker_link import (
    Progress,
    WorkerFailed,
    WorkerLink,
    WorkerMisconfigured,
    WorkerOptions,
)
from remora.executor.hop import Kind, WorkerReady

log = logging.getLogger("remora.front")

START_TRIES = 3
START_AGAIN_S = 10.0  # after that many failures, while other workers live
TAKE_WAIT_S = 1.5  # a client waits 2 s for its grant


@dataclass(eq=False)
class Worker:
    """One process. tenant: None while it waits for one. used_nbytes: of its values, as it last said."""

    number: int
    link: WorkerLink
    ready: WorkerReady | None = None
    tenant: str | None = None
    used_nbytes: int = 0
    told_nbytes: int = 0  # what it last heard of the others' use
    taken_at: float = 0.0
    arrivals: Arrivals = field(init=False)

    def __post_init__(self) -> None:
        self.arrivals = Arrivals(self.link.folder)


class Workers:
    """The pool.

    Args:
        folder: workers get their own below it. tenants: how many there can be.
        on_packet, on_ready, on_end: told what a worker sends, that it is ready, how it ended and what it ran.
        busy: whether a tenant has sessions.
    """

    def __init__(
        self,
        folder: Path,
        options: WorkerOptions,
        tenants: int,
        on_packet: Callable[[WorkerLink, Kind, int, bytes], None],
        on_ready: Callable[[Worker, WorkerReady], None],
        on_end: Callable[[Worker, str, Progress], None],
        busy: Callable[[str], bool],
    ) -> None:
        self._folder, self._options, self._tenants = folder, options, tenants
        self._on_packet, self._on_ready, self._on_end, self._busy = on_packet, on_ready, on_end, busy
        self.of_tenant: dict[str, Worker] = {}
        self._waiting: Worker | None = None  # starting, or ready and without a tenant
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failures = 0
        self._started = 0
        self._stopping = False

    @property
    def all(self) -> list[Worker]:
        return [*self.of_tenant.values(), *([self._waiting] if self._waiting else [])]

    async def run(self) -> None:
        """Runs until cancelled.

        Raises:
            WorkerFailed: workers do not even start.
        """
        try:
            self._replenish()
            await self._failed
        finally:
            self._stopping = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def take(self, tenant: str, now: float) -> Worker:
        """The tenant's worker.

        Raises:
            Refuse: it is starting, or others have all that there may be.
        """
        try:
            async with asyncio.timeout(TAKE_WAIT_S), self._changed:
                while True:
                    worker = self.of_tenant.get(tenant)
                    if worker is None and self._waiting is not None and self._waiting.ready is not None:
                        worker, self._waiting = self._waiting, None
                        worker.tenant, worker.taken_at = tenant, now
                        self.of_tenant[tenant] = worker
                        self._replenish()
                    if worker is not None:
                        return worker
                    if self._waiting is None:
                        self._make_room()
                    await self._changed.wait()
        except TimeoutError:
            raise Refuse(
                "busy", "the executor's worker for your tenant is starting; try again in a moment"
            ) from None

    def _make_room(self) -> None:
        """Ends the worker of a tenant that has no session, so that another can start. Raises Refuse."""
        idle = [worker for tenant, worker in self.of_tenant.items() if not self._busy(tenant)]
        if not idle:
            raise Refuse(
                "limit",
                f"the executor runs a worker each for {len(self.of_tenant)} tenants, which is its limit "
                "(--max-workers); try later",
            )
        worker = min(idle, key=lambda worker: worker.taken_at)
        log.info("worker %d of tenant %s has no sessions and makes room", worker.number, worker.tenant)
        self._forget(worker)
        worker.link.close()
        self._replenish()

    def _replenish(self) -> None:
        """Starts a worker if a tenant may come that has none."""
        room = min(self._tenants, self._options.max_workers) - len(self.of_tenant)
        if self._waiting is None and room > 0 and not self._stopping:
            self._started += 1
            link = WorkerLink(self._folder / f"worker-{self._started}", self._options, self._on_packet)
            self._waiting = Worker(self._started, link)
            task = asyncio.get_running_loop().create_task(self._live(self._waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _live(self, worker: Worker) -> None:
        """A worker's life."""
        try:
            worker.ready = await worker.link.start()
            self._failures = 0
            self._on_ready(worker, worker.ready)
            await self._tell()
            how = await worker.link.ended()
            if worker in self.all:  # not if it made room
                self._on_end(worker, how, worker.link.progress())
        except WorkerMisconfigured as error:
            self._stopping = True  # another would fail alike
            if not self._failed.done():
                self._failed.set_exception(error)
        except WorkerFailed as error:
            log.error("the worker failed at start: %s", error)
            self._failures += 1
            if self._failures >= START_TRIES:
                await self._despair(str(error))
        except Exception as error:  # a bug here must not leave an executor that serves nobody
            if not self._failed.done():
                self._failed.set_exception(error)
        finally:
            self._forget(worker)
            self._replenish()
            await worker.link.discard()
            await self._tell()

    async def _despair(self, last: str) -> None:
        """Ends the executor, unless it still serves somebody."""
        if not self.of_tenant and not self._failed.done():
            text = f"the worker failed at start {self._failures} times; last: {last}"
            self._failed.set_exception(WorkerFailed(text))
        await asyncio.sleep(START_AGAIN_S)

    def _forget(self, worker: Worker) -> None:
        if self._waiting is worker:
            self._waiting = None
        elif worker.tenant is not None and self.of_tenant.get(worker.tenant) is worker:
            del self.of_tenant[worker.tenant]

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
