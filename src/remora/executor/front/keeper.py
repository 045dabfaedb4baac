"""Keeps one worker running: starts it, tells the front of its life and death, starts the next."""

from __future__ import annotations

import logging

from remora.executor.front.front import Front
from remora.executor.front.worker_link import WorkerFailed, WorkerLink, WorkerMisconfigured

log = logging.getLogger("remora.front")

START_TRIES = 3


async def keep_worker(front: Front) -> None:
    """Runs until the front drains, or until cancelled.

    Raises:
        WorkerFailed: workers do not even start.
    """
    starts = failures = 0
    while not front.draining:
        starts += 1
        folder = front.folder / f"worker-{starts}"
        link = WorkerLink(folder, front.options.worker, front.take_packet)
        try:
            ready = await link.start()
            failures = 0
            front.worker_started(link, ready)
            how = await link.ended()
            front.worker_ended(how, link.progress())
        except WorkerMisconfigured:
            raise
        except WorkerFailed as error:
            failures += 1
            log.error("the worker failed at start: %s", error)
            if failures == START_TRIES:
                raise WorkerFailed(f"the worker failed at start {failures} times; last: {error}") from None
        finally:
            await link.discard()
