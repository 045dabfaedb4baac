"""Sessions that run scripts on executors behind shared links: from numbers to what they would measure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp

from remora.plan.devices import CLIENT, Link, Pool
from remora.plan.duration import Duration
from remora.sim.agenda import Agenda
from remora.sim.client import Client
from remora.sim.executor import Executor
from remora.sim.network import Network, Port, Route
from remora.sim.script import Ends, Script

MAX_SAMPLES = 200_000  # programs whose duration is kept one by one


@dataclass(frozen=True)
class Load:
    """Who comes when. sessions: in all. every_s: between their beginnings, on average; 0: all at once."""

    sessions: int = 1
    every_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Program:
    """One program of one session, from its beginning until the client has what it asked for. phase, waits: as of
    script.Ends."""

    phase: str
    seconds: float
    waits: bool = False


@dataclass
class Outcome:
    """What happened. seconds: until the last session ended. Lists are by executor; bytes with frames and heads."""

    seconds: float = 0.0
    programs: list[Program] = field(default_factory=list)
    n_programs: int = 0
    sessions_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    queued_s: list[float] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    most_queued: list[int] = field(default_factory=list)
    wasted_s: list[float] = field(default_factory=list)
    in_nbytes: list[int] = field(default_factory=list)
    out_nbytes: list[int] = field(default_factory=list)
    sent_nbytes: int = 0
    received_nbytes: int = 0
    pushed_nbytes: int = 0
    wasted: int = 0
    events: int = 0


@dataclass(frozen=True)
class Luck:
    """How wrong the calibration is in one simulation: a factor for each source of errors. Drawn once for each, since a
    rate that is wrong is wrong for all alike."""

    seed: int

    def factor(self, source: str, sigma: float) -> float:
        """Of mean error `sigma`, relative."""
        if not self.seed or not sigma:
            return 1.0
        return exp(random.Random(f"{self.seed} {source}").gauss(0.0, sigma))

    def seconds(self, duration: Duration) -> float:
        """A duration of which each source is as wrong as it is this time."""
        if not self.seed:
            return duration.seconds
        wrong = sum(
            error * random.Random(f"{self.seed} {source}").gauss(0.0, 1.0)
            for source, error in duration.errors.items()
        )
        return max(duration.seconds / 10, duration.seconds + wrong)

    def link(self, link: Link, source: str) -> Link:
        slower = self.factor(source, link.sigma)
        return Link(link.bytes_per_s / slower, link.latency_s * slower, link.message_s * slower, link.sigma)


NO_LUCK = Luck(0)


class World:
    """Executors and links of a simulation. Executor i is like device i of the pool, modulo their number, with links
    like that one's.

    Args:
        executors: how many there are. granted: how many of them one session gets, as many as the pool has devices.
        seed: of arrivals and of who gets which executors.
    """

    def __init__(self, pool: Pool, executors: int, load: Load, seed: int = 0, luck: Luck = NO_LUCK) -> None:
        self.pool, self.load, self.luck = pool, load, luck
        self.agenda = Agenda()
        self.network = Network(self.agenda)
        self.outcome = Outcome()
        self._granted = len(pool.devices)
        self._random = random.Random(seed)
        self._client_links = [luck.link(pool.link(CLIENT, at), f"client {at}") for at in range(self._granted)]
        self._links = {
            (a, b): luck.link(pool.link(a, b), f"link {a} to {b}")
            for a in range(self._granted)
            for b in range(self._granted)
            if a != b
        }
        peers = self._links.items()
        rates = [
            max(
                self._client_links[at].bytes_per_s,
                *(link.bytes_per_s for ends, link in peers if at in ends),
                0,
            )
            for at in range(self._granted)
        ]
        self.executors = [Executor(self.agenda) for _ in range(executors)]
        self._ports = [
            (Port(rates[at % self._granted]), Port(rates[at % self._granted])) for at in range(executors)
        ]

    def run(self, script: Script) -> Outcome:
        """All sessions of the load, each with the same script."""
        seconds = [self.luck.seconds(duration) for duration in script.durations]
        self._arrive(script, seconds, 0)
        self.agenda.run()
        return self._measured()

    def _arrive(self, script: Script, seconds: Sequence[float], number: int) -> None:
        """One session begins; the next one is announced, so that only those that are there take memory."""
        where = self._grant(number)
        client_rate = max(link.bytes_per_s for link in self._client_links)
        ends = Port(client_rate), Port(client_rate)
        ports = [*(self._ports[at] for at in where), ends]

        def route(source: int, target: int) -> Route:
            link = (
                self._links[source, target]
                if CLIENT not in (source, target)
                else self._client_links[max(source, target)]
            )
            fixed_s = link.latency_s + (link.message_s if CLIENT not in (source, target) else 0.0)
            return Route(ports[source][0], ports[target][1], fixed_s, link.bytes_per_s)

        client = Client(
            self.agenda,
            self.network,
            script,
            seconds,
            [self.executors[at] for at in where],
            route,
            self.luck.factor("client", 0.1),
            self._done,
            self._program,
        )
        for at in where:
            self.executors[at].sessions += 1
        self.agenda.at(self.agenda.now_s, client.go)
        if number + 1 < self.load.sessions:
            pause_s = self._random.expovariate(1 / self.load.every_s) if self.load.every_s else 0.0
            self.agenda.after(pause_s, self._arrive, script, seconds, number + 1)

    def _grant(self, number: int) -> list[int]:
        """The executors of a session: of two groups that are drawn, the one with fewer sessions."""
        count, size = len(self.executors), self._granted
        groups = max(1, count // size)
        if groups == 1:
            return list(range(size))
        drawn = [self._random.randrange(groups) * size for _ in range(2)]
        first = min(drawn, key=lambda at: (sum(self.executors[at + i].sessions for i in range(size)), at))
        return list(range(first, first + size))

    def _program(self, client: Client, ends: Ends, seconds: float) -> None:
        outcome = self.outcome
        outcome.n_programs += 1
        if len(outcome.programs) < MAX_SAMPLES:
            outcome.programs.append(Program(ends.phase, seconds, ends.waits))

    def _done(self, client: Client) -> None:
        outcome = self.outcome
        outcome.seconds = self.agenda.now_s
        if len(outcome.sessions_s) < MAX_SAMPLES:
            outcome.sessions_s.append(self.agenda.now_s - client.began_s)
        for lane in client.lanes:
            lane.executor.sessions -= 1
            outcome.sent_nbytes += lane.sent_nbytes
            outcome.received_nbytes += lane.received_nbytes
            outcome.wasted += lane.wasted
        outcome.pushed_nbytes += client.pushed_nbytes

    def _measured(self) -> Outcome:
        outcome = self.outcome
        for executor, (sends, receives) in zip(self.executors, self._ports, strict=True):
            outcome.busy_s.append(executor.busy_s)
            outcome.queued_s.append(executor.queued_s)
            outcome.frames.append(executor.frames)
            outcome.most_queued.append(executor.most_queued)
            outcome.wasted_s.append(executor.wasted_s)
            outcome.in_nbytes.append(receives.nbytes)
            outcome.out_nbytes.append(sends.nbytes)
        outcome.events = self.agenda.events
        return outcome
