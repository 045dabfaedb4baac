"""How fast the executors of a pool and the links between them are: measured when a pool is opened, kept on disk.

Each executor is measured in a session of its own that ends with it, one after the other, since executors may share a
machine. What was measured of an executor is good for as long as its process lives.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median

from blake3 import blake3

from remora.config import ClientSettings, cache_dir
from remora.errors import ExecutorError, RemoraError
from remora.plan.calibrate import (
    CACHE_NBYTES,
    Fitted,
    Measured,
    as_alike,
    fastest,
    fit,
    fit_link,
    measured,
    script,
)
from remora.plan.devices import Device, Pool
from remora.plan.devices import Link as Rate
from remora.plan.kept import MAX_NBYTES, VERSION, Calibration, from_json, to_json
from remora.plan.probe_suite import CPU, GPU, TIGHT_CPU, TIGHT_GPU, suite
from remora.plan.probes import Bench
from remora.session.link import Link, to_stderr
from remora.transport.interface import Transport
from remora.wire.binding import SiteMemory, encode_run
from remora.wire.messages import (
    Await,
    Barrier,
    Define,
    DeviceFacts,
    DeviceQuery,
    Fetch,
    Free,
    Grant,
    Marked,
    OpenSession,
    Peer,
    Push,
    Pushed,
    PushFailed,
    Recover,
    Site,
    Values,
)

SMALL_NBYTES, LARGE_NBYTES = 4 << 10, 2 << 20  # of messages that tell latency and rate
SMALL_TRIALS, LARGE_TRIALS = 5, 3
ROUNDS = 2  # of a pool's devices, one after the other: a machine that is busy for a while is not busy in all
CLIENT = ""  # as the other end of a link, where a calibration names ends by address
SEGMENTS = 100_000  # that one executor may use up
MAX_FILES = 64  # calibrations on disk

Opened = tuple[Transport, Grant]


class Probe:
    """One executor in a session for measuring, with what it answers.

    Args:
        number: of the executor; names of values begin with it, since they are the same at a peer that they go to.
    """

    def __init__(self, transport: Transport, grant: Grant, settings: ClientSettings, number: int) -> None:
        self.transport, self.grant = transport, grant
        self.link = Link(transport, grant, settings, to_stderr(transport.address))
        self.ticket, self.template = 1, 0  # the next ones
        self.segment = 1 + number * SEGMENTS
        self.marks: dict[int, Marked] = {}
        self.pushes: dict[int, Pushed | PushFailed] = {}
        self.link.on_mark = lambda mark: self.marks.__setitem__(mark.ticket, mark)
        self.link.on_push = lambda answer: self.pushes.__setitem__(answer.ticket, answer)

    def _ticket(self) -> int:
        self.ticket += 1
        return self.ticket - 1

    def wait_until(self, known: Callable[[], bool]) -> None:
        """Raises ExecutorError if a row fails there."""
        self.link.wait_until(known)
        failed = self.link.failed
        if failed is not None:
            raise ExecutorError(
                f"measuring executor {self.transport.address}: {failed.op or 'a message'}: {failed.message}"
            )

    @property
    def kind(self) -> str:
        """cpu or cuda."""
        return self.grant.device.partition(":")[0]

    def measured(self) -> tuple[Bench, Measured]:
        """Runs the probes of its kind, smaller ones if there is no memory for them.

        Raises:
            ExecutorError: a probe fails there.
        """
        asynchronous = self.kind != "cpu"
        for sizes in (GPU, TIGHT_GPU) if asynchronous else (CPU, TIGHT_CPU):
            bench = suite(sizes)
            found = self._run(bench, asynchronous)
            if found is not None:
                break
        else:
            self.wait_until(lambda: True)
        assert found is not None
        return bench, found

    def name(self) -> str:
        """The model of its device."""
        query = DeviceQuery(self._ticket())
        self.link.commit([query])
        self.link.transmit()
        facts = self.link.wait(query.ticket)
        assert isinstance(facts, DeviceFacts)
        return facts.name[:120]

    def fitted(self, name: str, bench: Bench, found: Measured) -> Fitted:
        """The device that explains what was measured."""
        cache_nbytes = CACHE_NBYTES.get(self.kind, 0)
        name = f"{name} at {self.transport.address[:70]}"
        return fit(name, bench, found, self.grant.memory_nbytes, cache_nbytes, self.kind != "cpu")

    def _run(self, bench: Bench, asynchronous: bool) -> Measured | None:
        """What the probes took; None if there is no memory for them, and the executor's word for it is in `link`."""
        told = script(bench, self.segment, self.template, self.template, self.ticket)
        self.segment += told.segments
        self.template += told.templates  # and as many sites
        self.ticket += told.tickets
        failed, self.link.failed = self.link.failed, None
        self.link.commit([*([Recover(failed.failure)] if failed else []), *told.messages])
        self.link.transmit()
        last = told.marks[-1][2]
        self.link.wait_until(lambda: last in self.marks)
        failed = self.link.failed
        if failed is not None and failed.kind == "memory":
            return None
        self.wait_until(lambda: True)
        return measured(told, self.marks, asynchronous)

    @contextmanager
    def values(self) -> Iterator[tuple[int, int, int]]:
        """A segment with a small value in row 0 and a large one in row 1; their bytes."""
        bench = Bench(1)
        sizes = [bench.tensor(nbytes // 4) for nbytes in (SMALL_NBYTES, LARGE_NBYTES)]
        template = site = self.template
        segment = self.segment
        self.template, self.segment = template + 1, segment + 1
        run = encode_run(
            SiteMemory(template),
            segment,
            site,
            [],
            list(bench.holes),
            tuple(n for row in sizes for n in (row, 0)),
            (),
        )
        self.link.commit([Define(template, bench.prepare.body), Site(site, template), run])
        self.link.transmit()
        yield segment, SMALL_NBYTES, LARGE_NBYTES
        self.link.commit([Free(tuple(n for row in sizes for n in (segment, row, 0)))])
        self.link.transmit()

    def client(self, segment: int) -> Rate:
        """Its link to this process, from round trips of nothing and of a large value."""
        samples = [(0, self._round_trip()) for _ in range(SMALL_TRIALS)]
        samples += [(LARGE_NBYTES, self._fetch(segment, 1)) for _ in range(LARGE_TRIALS)]
        return fit_link(_typical(samples), round_trip=True)

    def _round_trip(self) -> float:
        barrier = Barrier(self._ticket())
        started_s = time.perf_counter()
        self.link.commit([barrier])
        self.link.transmit()
        self.link.wait(barrier.ticket)
        return time.perf_counter() - started_s

    def _fetch(self, segment: int, row: int) -> float:
        fetch = Fetch(self._ticket(), (segment, row, 0), False)
        started_s = time.perf_counter()
        self.link.commit([fetch])
        self.link.transmit()
        reply = self.link.wait(fetch.ticket)
        if not isinstance(reply, Values):
            self.wait_until(lambda: True)
        assert isinstance(reply, Values)
        (payload,) = reply.values
        if payload.data is None and payload.bulk is not None:
            self.transport.get_bulk(self.grant, payload.bulk, memoryview(bytearray(payload.nbytes)))
        return time.perf_counter() - started_s

    def peer(self, number: int, other: Probe, segment: int) -> Rate:
        """Its link to another executor, from pushes; `number` is what that one is called here."""
        grant = other.grant
        self.link.commit([Peer(number, other.transport.address, grant.session, grant.push_secret)])
        samples: list[tuple[int, float]] = []
        for row, nbytes, trials in (
            (0, SMALL_NBYTES, SMALL_TRIALS),
            (1, LARGE_NBYTES, LARGE_TRIALS),
        ):
            for _ in range(trials):
                samples.append((nbytes, self._push(number, other, (segment, row, 0))))
        return fit_link(_typical(samples))

    def _push(self, number: int, other: Probe, name: tuple[int, int, int]) -> float:
        ticket = self._ticket()
        self.link.commit([Push(ticket, number, name)])
        other.link.commit([Await(name, self.transport.address[:200]), Free(name)])
        for link in (self.link, other.link):
            link.transmit()
        self.wait_until(lambda: ticket in self.pushes)
        answer = self.pushes.pop(ticket)
        if isinstance(answer, PushFailed):
            raise ExecutorError(
                f"executor {self.transport.address} cannot reach executor {other.transport.address}: {answer.message}"
            )
        return answer.seconds


def calibrated(opened: Sequence[Opened], settings: ClientSettings, wants: OpenSession) -> Pool:
    """What is known of these executors, which were granted sessions already.

    Raises:
        ExecutorError: one of them cannot run a probe, or does not reach another.
    """
    known = [_read(transport, grant) for transport, grant in opened]
    addresses = [transport.address for transport, _ in opened]
    complete = all(
        one is not None and {CLIENT, *addresses} - {own} <= one.links.keys()
        for one, own in zip(known, addresses, strict=True)
    )
    if not complete:
        known = [*_measured(opened, known, settings, wants)]
        for (transport, _), one in zip(opened, known, strict=True):
            assert one is not None
            _write(transport, one)
    found = [one for one in known if one is not None]
    return Pool(
        tuple(one.device for one in found),
        {
            (source, target): one.links[addresses[target]]
            for source, one in enumerate(found)
            for target in range(len(found))
            if target != source
        },
        tuple(one.links[CLIENT] for one in found),
    )


def _measured(
    opened: Sequence[Opened],
    known: Sequence[Calibration | None],
    settings: ClientSettings,
    wants: OpenSession,
) -> Iterator[Calibration]:
    with ExitStack() as stack:
        probes = [
            stack.enter_context(probing(transport, settings, wants, number))
            for number, (transport, _) in enumerate(opened)
        ]
        devices = _devices([probe for probe, one in zip(probes, known, strict=True) if one is None])
        segments = [stack.enter_context(probe.values())[0] for probe in probes]
        for own, (probe, segment) in enumerate(zip(probes, segments, strict=True)):
            grant = opened[own][1]
            before = known[own]
            links = dict(before.links) if before is not None else {}
            device = before.device if before is not None else next(devices)
            if CLIENT not in links:
                links[CLIENT] = probe.client(segment)
            for number, other in enumerate(probes):
                if number != own and other.transport.address not in links:
                    links[other.transport.address] = probe.peer(number, other, segment)
            yield Calibration(VERSION, _key(grant), device, links)


def _devices(probes: Sequence[Probe]) -> Iterator[Device]:
    """The devices of executors that were not measured yet. Each is measured several times, some time apart."""
    rounds = [[probe.measured() for probe in probes] for _ in range(ROUNDS if len(probes) > 1 else 1)]
    names = [probe.name() for probe in probes]
    best = [fastest([found for _, found in of_one]) for of_one in zip(*rounds, strict=True)]
    alike = as_alike(list(zip(names, best, strict=True)))
    for number, (probe, name, found) in enumerate(zip(probes, names, alike, strict=True)):
        yield probe.fitted(name, rounds[0][number][0], found).device


@contextmanager
def probing(
    transport: Transport, settings: ClientSettings, wants: OpenSession, number: int = 0
) -> Iterator[Probe]:
    """Opens a session to measure an executor with, and ends it."""
    grant = transport.open_session(wants, settings.connect_timeout_s)
    probe = Probe(transport, grant, settings, number)
    try:
        probe.link.open(settings.connect_timeout_s)
        yield probe
    finally:
        with suppress(RemoraError, OSError):  # else its lease ends it
            transport.close_session(grant, 2.0)
        probe.link.close()


def _typical(samples: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The median of each size."""
    sizes = dict.fromkeys(nbytes for nbytes, _ in samples)
    return [(size, median(s for nbytes, s in samples if nbytes == size)) for size in sizes]


# -- on disk


def _key(grant: Grant) -> str:
    """What a calibration belongs to: one process, on one device."""
    return f"{grant.executor} {grant.device} torch {grant.torch}"


def _path(transport: Transport) -> Path:
    return cache_dir() / "calibrations" / f"{blake3(transport.address.encode()).hexdigest(16)}.json"


def _read(transport: Transport, grant: Grant) -> Calibration | None:
    """None if there is none that may be used: it is measured again then."""
    try:
        with _path(transport).open("rb") as file:
            return from_json(file.read(MAX_NBYTES + 1), _key(grant))
    except (OSError, ValueError):
        return None


def _write(transport: Transport, calibration: Calibration) -> None:
    """What cannot be written costs a second at the next connect, nothing else."""
    path = _path(transport)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".calibration-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(to_json(calibration))
        os.replace(temporary, path)
        oldest = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)
        for each in oldest[:-MAX_FILES]:
            each.unlink(missing_ok=True)
