"""What is added up while a program runs on executors that are not there: programs, bytes, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from remora.plan.devices import CLIENT, Pool
from remora.plan.forecast import Reads, Traffic
from remora.plan.memory import footprint
from remora.plan.timeline import Timeline, Took
from remora.session.holdings import Holdings
from remora.session.ledger import Ledger
from remora.session.plans import Plan
from remora.wire.limits import MAX_INLINE_NBYTES

GROWN = 1.01  # what is held is looked at again when it has grown so much,
FRESH = 2  # or when a plan runs for one of the first times, and has told what its values are
MAX_PROGRAMS = 100_000  # whose durations are kept


Footprints = tuple[tuple[int, int, int], ...]
"""Of each executor of a plan: its number, bytes made at most at one time, and of these bytes kept."""


class Account:
    """The totals of one session.

    Args:
        clock: seconds; what the estimate itself spends is taken out with `outside`.
    """

    def __init__(self, pool: Pool, clock: Callable[[], float]) -> None:
        self.pool, self.clock = pool, clock
        self.programs: list[Took] = []
        self.before_s = 0.0  # predicted, of all programs before this one
        self.busy_s = 0.0  # of it, the executors
        self.held: list[dict[str, int]] = [{} for _ in pool.devices]
        self.peaks = [0] * len(pool.devices)
        self._most = [0] * len(pool.devices)
        self._made: dict[
            int, tuple[Plan, Footprints]
        ] = {}  # by the plan's id, which it keeps from being another's
        self._moved: dict[tuple[int, int, str], Traffic] = {}
        self._timeline = Timeline()
        self._began_s = clock()
        self._outside_s = 0.0
        self._reads = self._guessed = self._returned_nbytes = 0
        self._where: Counter[str] = Counter()

    # -- time

    def outside(self, seconds: float) -> None:
        """The client spent this on the estimate, and would not in a real session."""
        self._outside_s += seconds

    def _now_s(self) -> float:
        return max(0.0, self.clock() - self._began_s - self._outside_s)

    def begins(self) -> None:
        """What was before is over. In the middle of a program: nothing."""
        if not self._timeline.started:
            self._began_s, self._outside_s = self.clock(), 0.0

    def segment(self, plan: Plan, nbytes: int, rows: int) -> None:
        """A segment was placed; `nbytes` of messages say so."""
        executors = sorted({part.executor for part in plan.parts})
        links = [self.pool.client[executor] for executor in executors]
        took = plan.whole.less(self._reply_s(plan))
        self._timeline.segment(self._now_s(), took, links, nbytes, rows, plan.phase)

    def _reply_s(self, plan: Plan) -> float:
        """The way back to the client, where the plan counts it: here the end of the program does."""
        replies: Counter[int] = Counter()
        for row, out in plan.graph.wants:
            facts = plan.graph.rows[row].outs[out]
            replies[plan.parts[plan.found[row][0]].executor] += facts.nbytes if facts is not None else 0
        return max(
            (self.pool.client[executor].seconds(nbytes) for executor, nbytes in replies.items()), default=0.0
        )

    def program_ends(self, executor: int | None, nbytes: int) -> None:
        """A sync; `nbytes` come back from an executor. None: the script is over."""
        if self._timeline.started:
            link = None if executor is None else self.pool.client[executor]
            took = self._timeline.ended(self._now_s(), link, nbytes)
            if len(self.programs) < MAX_PROGRAMS:
                self.programs.append(took)
            self.before_s += took.whole.seconds
            self.busy_s += took.executors.seconds
        self._timeline = Timeline()
        self.begins()

    @property
    def now_s(self) -> float:
        """Predicted, of everything so far."""
        return self.before_s + self._timeline.end_s

    @property
    def computed_s(self) -> float:
        """Of that, the executors' own."""
        return self.busy_s + self._timeline.executors.seconds

    # -- bytes

    def uploads(self, executor: int, residency: str, nbytes: int) -> None:
        """The client sends a value: in a message that goes anyway, or in a request that it waits for."""
        link = self.pool.client[executor]
        inline = nbytes <= MAX_INLINE_NBYTES
        seconds = nbytes / link.bytes_per_s if inline else link.seconds(nbytes) + link.latency_s
        self._move(CLIENT, executor, residency, nbytes, seconds)

    def pushes(self, source: int, target: int, nbytes: Mapping[str, int]) -> None:
        """One message with bytes of some residencies goes from executor to executor."""
        link, whole = self.pool.link(source, target), sum(nbytes.values())
        for residency, part in nbytes.items():
            share = part / whole if whole else 1 / len(nbytes)
            self._move(source, target, residency, part, link.seconds(whole) * share)

    def _move(self, source: int, target: int, residency: str, nbytes: int, seconds: float) -> None:
        key = source, target, str(residency)
        known = self._moved.get(key, Traffic(*key, 0, 0, 0.0, 0.0))
        seconds += known.seconds
        sigma_s = seconds * self.pool.link(source, target).sigma
        self._moved[key] = Traffic(*key, known.nbytes + nbytes, known.count + 1, seconds, sigma_s)

    def traffic(self) -> tuple[Traffic, ...]:
        """All bytes by way and residency, the client's first and most of them first."""
        return tuple(sorted(self._moved.values(), key=lambda flow: (flow.source != CLIENT, -flow.nbytes)))

    # -- reads

    def read(self, nbytes: int, certain: bool, line: str) -> None:
        self._reads += 1
        self._returned_nbytes += nbytes
        if not certain:
            self._guessed += 1
            self._where[line] += 1

    def reads(self) -> Reads:
        return Reads(self._reads, self._guessed, self._returned_nbytes, tuple(self._where.most_common()))

    # -- memory

    def weigh(self, holdings: Holdings, plan: Plan | None) -> None:
        """After a plan was placed: what is held, and what was at most while it ran."""
        held = holdings.held_nbytes
        for executor, made, kept in self._footprints(plan) if plan is not None else ():
            self.peaks[executor] = max(self.peaks[executor], held[executor] - kept + made)
        fresh = plan is not None and plan.ran.count <= FRESH
        for executor, nbytes in enumerate(held):
            self.peaks[executor] = max(self.peaks[executor], nbytes)
            most = self._most[executor]
            if nbytes > most * GROWN or (fresh and nbytes > most / GROWN):
                self._most[executor] = max(most, nbytes)
                self.held[executor] = by_residency(holdings, executor)

    def _footprints(self, plan: Plan) -> Footprints:
        known = self._made.get(id(plan))
        if known is None:
            by_executor: dict[int, list[int]] = {}
            for part in plan.parts:
                by_executor.setdefault(part.executor, []).extend(part.rows)
            found = []
            for executor, rows in by_executor.items():
                needed = footprint(plan.graph, sorted(rows))
                found.append((executor, needed.made_nbytes, needed.kept_nbytes))
            known = self._made[id(plan)] = plan, tuple(found)
        return known[1]


def by_residency(holdings: Holdings, executor: int) -> dict[str, int]:
    """Bytes that an executor holds by what they are, each memory once; '' for what nobody recognised."""
    storages: dict[int, tuple[int, str]] = {}
    for place in holdings.places.values():
        if executor not in place.homes:
            continue
        known = storages.get(place.storage.number)
        nbytes, residency = place.facts.nbytes, str(place.meaning.residency or "")
        if known is not None:
            nbytes, residency = max(nbytes, known[0]), known[1] or residency
        storages[place.storage.number] = nbytes, residency
    found: Counter[str] = Counter()
    for nbytes, residency in storages.values():
        found[residency] += nbytes
    return dict(found)


class Unmeasured(Ledger):
    """A ledger of what nobody measures: pushes go into the account. ran: the plan that ran last."""

    def __init__(self, account: Account, ticket: Callable[[], int]) -> None:
        super().__init__(account.pool, ticket)
        self.account = account
        self.ran: Plan | None = None

    def runs(self, plan: Plan, now_s: float) -> list[tuple[int, int]]:
        plan.ran.count += 1
        self.ran = plan
        return []

    def uploads(self, executor: int, residency: str, nbytes: int) -> None:
        """What an upload is, its readers tell later: EstimatedSession counts it then."""

    def pushes_to(
        self, source: int, target: int, names: tuple[int, ...], of: Counter[tuple[str, str]]
    ) -> int:
        nbytes: Counter[str] = Counter()
        for (_, residency), part in of.items():
            nbytes[residency] += part
        self.account.pushes(source, target, nbytes)
        return self._ticket()
